//! Downloads the official archives of CIFAR.
//!
//! The bytes go into a `.part` file, which a later call goes on with; only when size and MD5 are
//! right does it get its final name. So a file with that name is whole. (MD5 is what the authors
//! publish; it guards against accidents, not against forgery.)

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use md5::{Digest, Md5};
use ureq::Agent;
use ureq::http::header::{CONTENT_RANGE, RANGE};

use super::{Source, grouped};
use crate::{Error, Result};

/// How often a connection that was cut is taken up again, if each one brought something.
const RESUMES: usize = 8;
const BASE: &str = "https://www.cs.toronto.edu/~kriz";
const CIFAR10: (&str, u64, &str) = ("cifar-10-binary.tar.gz", 170_052_171, "c32a1d4ab5d03f1284b67883e8d87530");
const CIFAR100: (&str, u64, &str) = ("cifar-100-binary.tar.gz", 168_513_733, "03b5dce01913d631647c71ecec9e9cb8");

/// Downloads the archive of a data set into the folder `dest` and returns its path.
///
/// A file that is already there is verified and kept. A download that was cut short goes on where
/// it stopped. `progress` is called with the bytes so far and, where known, in all.
///
/// # Errors
/// [`Error::Download`] when the server or the network fails, or the bytes are not the right ones;
/// [`Error::File`] when a file of that name is there with other contents; [`Error::Io`] when the
/// folder cannot be written; [`Error::Config`] for [`Source::Shapes`].
pub fn fetch(source: Source, dest: &Path, progress: &mut dyn FnMut(u64, Option<u64>)) -> Result<PathBuf> {
    let (name, size, md5) = match source {
        Source::Cifar10 => CIFAR10,
        Source::Cifar100 | Source::Cifar100Coarse => CIFAR100,
        Source::Shapes => {
            return Err(Error::config("data", "`shapes` is generated: there is nothing to fetch", "use it as it is"));
        }
    };
    let wait = |seconds| Some(Duration::from_secs(seconds));
    // No limit for the whole: a slow network may take its time, as long as bytes arrive.
    let agent = Agent::config_builder()
        .http_status_as_error(false)
        .timeout_resolve(wait(20))
        .timeout_connect(wait(20))
        .timeout_recv_response(wait(60))
        .timeout_per_read(wait(60))
        .build()
        .into();
    Job { agent, url: format!("{BASE}/{name}"), name, size, md5, dest }.run(progress)
}

/// One file to download.
struct Job<'a> {
    agent: Agent,
    url: String,
    name: &'a str,
    size: u64,
    md5: &'a str,
    dest: &'a Path,
}

/// How an attempt ended that was no failure for good.
enum Outcome {
    Complete,
    /// The connection was cut.
    Cut(String),
}

impl Job<'_> {
    fn run(&self, progress: &mut dyn FnMut(u64, Option<u64>)) -> Result<PathBuf> {
        fs::create_dir_all(self.dest).map_err(Error::io("create", self.dest))?;
        let path = self.dest.join(self.name);
        if path.exists() {
            self.verify_existing(&path)?;
            progress(self.size, Some(self.size));
            return Ok(path);
        }
        let part = self.dest.join(format!("{}.part", self.name));
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&part)
            .map_err(Error::io("create", &part))?;
        // Where the file system has no locks, go on without.
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            let problem = format!("another process is downloading to {}", part.display());
            return Err(Error::Download {
                url: self.url.clone(),
                problem,
                remedy: "wait until it has finished".into(),
            });
        }
        self.fill(&mut file, &part, progress)?;
        let sum = md5_of(&mut file).map_err(Error::io("read", &part))?;
        if sum != self.md5 {
            fs::remove_file(&part).map_err(Error::io("delete", &part))?;
            return Err(self.error(format!("the MD5 is {sum}, not {}; the bytes were deleted", self.md5)));
        }
        file.sync_all().map_err(Error::io("write", &part))?;
        fs::rename(&part, &path).map_err(Error::io("rename", &part))?;
        // The name itself is safe once the folder is on disk; not every system can do that.
        let _ = File::open(self.dest).and_then(|dir| dir.sync_all());
        Ok(path)
    }

    fn verify_existing(&self, path: &Path) -> Result<()> {
        let mut file = File::open(path).map_err(Error::io("open", path))?;
        let sum = md5_of(&mut file).map_err(Error::io("read", path))?;
        if sum == self.md5 {
            return Ok(());
        }
        Err(Error::file(path, format!("the MD5 is {sum}, not {}", self.md5), "delete the file and fetch it again"))
    }

    /// Downloads until the part file has its size.
    fn fill(&self, file: &mut File, part: &Path, progress: &mut dyn FnMut(u64, Option<u64>)) -> Result<()> {
        let mut problem = String::new();
        for _ in 0..=RESUMES {
            let before = file.metadata().map_err(Error::io("read", part))?.len();
            if before == self.size {
                return Ok(());
            }
            match self.attempt(file, part, before, progress)? {
                Outcome::Complete => return Ok(()),
                Outcome::Cut(why) => problem = why,
            }
            let now = file.metadata().map_err(Error::io("read", part))?.len();
            if now <= before {
                break;
            }
        }
        let have = file.metadata().map_or(0, |m| m.len());
        if have > 0 {
            let (have, size) = (grouped(have), grouped(self.size));
            problem = format!("{problem}; {have} of {size} bytes are here, the next try goes on from there");
        } else {
            // Nothing to go on with: leave no litter.
            let _ = fs::remove_file(part);
        }
        Err(self.error(problem))
    }

    /// One request, from where the part file ends.
    fn attempt(
        &self,
        file: &mut File,
        part: &Path,
        have: u64,
        progress: &mut dyn FnMut(u64, Option<u64>),
    ) -> Result<Outcome> {
        // Longer than the whole: not a part of it.
        let from = if have < self.size { have } else { 0 };
        let mut request = self.agent.get(&self.url);
        if from > 0 {
            request = request.header(RANGE, format!("bytes={from}-"));
        }
        let mut response = match request.call() {
            Ok(response) => response,
            Err(e) => return Ok(Outcome::Cut(e.to_string())),
        };
        let mut at = match response.status().as_u16() {
            206 => {
                let range = response.headers().get(CONTENT_RANGE).and_then(|v| v.to_str().ok()).unwrap_or_default();
                if from == 0 || !range.starts_with(&format!("bytes {from}-")) {
                    return Err(self.error(format!("the server sent `{range}` when asked for bytes from {from} on")));
                }
                from
            }
            // The whole file: the server takes no ranges, or was not asked for one.
            200 => 0,
            code => return Err(self.error(format!("the server answered with HTTP status {code}"))),
        };
        file.set_len(at).map_err(Error::io("write", part))?;
        file.seek(SeekFrom::Start(at)).map_err(Error::io("write", part))?;
        let mut body = response.body_mut().as_reader();
        let mut buffer = vec![0; 1 << 16];
        while at < self.size {
            progress(at, Some(self.size));
            let n = match body.read(&mut buffer) {
                Ok(0) => return Ok(Outcome::Cut("the connection was closed early".into())),
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Ok(Outcome::Cut(e.to_string())),
            };
            // More than the size means another file: the MD5 will tell; do not fill the disk with it.
            let n = n.min(usize::try_from(self.size - at).unwrap_or(n));
            file.write_all(buffer.get(..n).unwrap_or(&[])).map_err(Error::io("write", part))?;
            at += n as u64;
        }
        progress(at, Some(self.size));
        Ok(Outcome::Complete)
    }

    fn error(&self, problem: String) -> Error {
        let Job { url, name, md5, dest, .. } = self;
        let remedy = format!(
            "try again later; or get {url} in another way (MD5 {md5}) and put it at {}, or anywhere and give it as \
             it is with `--data PATH/{name}`",
            dest.join(name).display()
        );
        Error::Download { url: url.clone(), problem, remedy }
    }
}

fn md5_of(file: &mut File) -> io::Result<String> {
    file.seek(SeekFrom::Start(0))?;
    let mut hash = Md5::new();
    let mut buffer = vec![0; 1 << 18];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect()),
            Ok(n) => hash.update(buffer.get(..n).unwrap_or(&[])),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::net::TcpListener;
    use std::thread::{self, JoinHandle};

    /// What the server of a test does with one request.
    #[derive(Clone, Copy)]
    enum Reply {
        /// Serves ranges, and closes the connection after this many bytes of the body.
        Ranges(usize),
        /// Sends the whole file whatever was asked for.
        Whole,
        Status(&'static str),
    }

    fn content() -> Vec<u8> {
        (0..300_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
    }

    /// A server that gives these replies, one connection each, and then is gone. It returns the
    /// ranges it was asked for.
    fn serve(replies: &[Reply]) -> (String, JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/file.tar.gz", listener.local_addr().unwrap());
        let replies = replies.to_vec();
        let handle = thread::spawn(move || {
            let content = content();
            let mut asked = Vec::new();
            for reply in replies {
                let (mut socket, _) = listener.accept().unwrap();
                let mut range = String::new();
                for line in BufReader::new(&socket).lines() {
                    let line = line.unwrap().to_lowercase();
                    if let Some(r) = line.strip_prefix("range: bytes=") {
                        range = r.to_string();
                    }
                    if line.is_empty() {
                        break;
                    }
                }
                let from: usize = range.trim_end_matches('-').parse().unwrap_or(0);
                asked.push(range);
                let all = content.len();
                let (status, from, limit) = match reply {
                    Reply::Status(status) => (status.to_string(), all, 0),
                    Reply::Whole => ("200 OK".to_string(), 0, all),
                    Reply::Ranges(n) if from == 0 => ("200 OK".to_string(), 0, n),
                    Reply::Ranges(n) => {
                        let range = format!("206 Partial Content\r\nContent-Range: bytes {from}-{}/{all}", all - 1);
                        (range, from, n)
                    }
                };
                let body = &content[from..];
                let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
                socket.write_all(head.as_bytes()).unwrap();
                // The client may hang up before the end.
                let _ = socket.write_all(&body[..limit.min(body.len())]);
            }
            asked
        });
        (url, handle)
    }

    fn sum(bytes: &[u8]) -> String {
        Md5::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
    }

    fn get(url: &str, md5: &str, dest: &Path) -> Result<PathBuf> {
        // No proxy: the tests talk to this machine only.
        let agent = Agent::config_builder()
            .proxy(None)
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(20)))
            .build()
            .into();
        let job = Job { agent, url: url.into(), name: "file.tar.gz", size: content().len() as u64, md5, dest };
        let mut last = 0;
        let result = job.run(&mut |at, all| {
            assert_eq!(all, Some(300_000));
            last = at;
        });
        assert!(result.is_err() || last == 300_000);
        result
    }

    #[test]
    fn a_whole_file_is_kept_and_not_fetched_twice() {
        let dir = tempfile::tempdir().unwrap();
        let dest = dir.path().join("new/folder");
        let (url, server) = serve(&[Reply::Whole]);
        let path = get(&url, &sum(&content()), &dest).unwrap();
        assert_eq!(fs::read(&path).unwrap(), content());
        assert_eq!(server.join().unwrap(), [""]);
        // The server is gone; the file is enough.
        assert_eq!(get(&url, &sum(&content()), &dest).unwrap(), path);
        assert_eq!(fs::read_dir(&dest).unwrap().count(), 1);
        fs::write(&path, "something else").unwrap();
        let e = get(&url, &sum(&content()), &dest).unwrap_err();
        assert!(matches!(e, Error::File { .. }), "{e}");
    }

    #[test]
    fn a_cut_connection_is_taken_up_again() {
        let dir = tempfile::tempdir().unwrap();
        let (url, server) = serve(&[Reply::Ranges(100_000), Reply::Ranges(50_000), Reply::Ranges(usize::MAX)]);
        let path = get(&url, &sum(&content()), dir.path()).unwrap();
        assert_eq!(fs::read(path).unwrap(), content());
        assert_eq!(server.join().unwrap(), ["", "100000-", "150000-"]);
    }

    #[test]
    fn a_later_call_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let (url, server) = serve(&[Reply::Ranges(100_000), Reply::Ranges(0)]);
        let e = get(&url, &sum(&content()), dir.path()).unwrap_err().to_string();
        assert!(e.contains("100,000 of 300,000 bytes are here"), "{e}");
        server.join().unwrap();
        let (url, server) = serve(&[Reply::Ranges(usize::MAX)]);
        get(&url, &sum(&content()), dir.path()).unwrap();
        assert_eq!(server.join().unwrap(), ["100000-"]);
    }

    #[test]
    fn a_server_without_ranges_starts_over() {
        let dir = tempfile::tempdir().unwrap();
        let part = dir.path().join("file.tar.gz.part");
        for stale in [5, 400_000] {
            fs::write(&part, vec![7; stale]).unwrap();
            let (url, server) = serve(&[Reply::Whole]);
            let path = get(&url, &sum(&content()), dir.path()).unwrap();
            assert_eq!(fs::read(&path).unwrap(), content());
            server.join().unwrap();
            fs::remove_file(path).unwrap();
        }
    }

    #[test]
    fn wrong_bytes_are_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let (url, server) = serve(&[Reply::Whole]);
        let e = get(&url, "0123", dir.path()).unwrap_err().to_string();
        assert!(e.contains(&sum(&content())) && e.contains("not 0123"), "{e}");
        server.join().unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn refusals_say_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let (url, server) = serve(&[Reply::Status("404 Not Found")]);
        let e = get(&url, "0123", dir.path()).unwrap_err().to_string();
        server.join().unwrap();
        for word in [&url, "404", "MD5 0123", "--data", &dir.path().join("file.tar.gz").display().to_string()] {
            assert!(e.contains(word), "{word}: {e}");
        }
        // Nobody listens any more.
        let e = get(&url, "0123", dir.path()).unwrap_err();
        assert!(matches!(e, Error::Download { .. }), "{e}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(fetch(Source::Shapes, dir.path(), &mut |_, _| {}).is_err());
    }

    #[test]
    fn disk_failures_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let e = get("http://127.0.0.1:1/", "0123", &file).unwrap_err();
        assert!(matches!(e, Error::Io { action: "create", .. }), "{e}");
    }

    /// `/dev/full` takes no byte: a disk without room.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/full", dir.path().join("file.tar.gz.part")).unwrap();
        let (url, server) = serve(&[Reply::Whole]);
        let e = get(&url, "0123", dir.path()).unwrap_err();
        server.join().unwrap();
        assert!(matches!(e, Error::Io { .. }), "{e}");
    }

    #[test]
    fn two_at_once_do_not_mix() {
        let dir = tempfile::tempdir().unwrap();
        let part = File::create(dir.path().join("file.tar.gz.part")).unwrap();
        part.lock().unwrap();
        let e = get("http://127.0.0.1:1/", "0123", dir.path()).unwrap_err().to_string();
        assert!(e.contains("another process"), "{e}");
    }
}
