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
use crate::formats::file;
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
/// folder cannot be written; [`Error::Config`] for [`Source::Shapes`] and [`Source::ImageFolder`].
pub fn fetch(source: Source, dest: &Path, progress: &mut dyn FnMut(u64, Option<u64>)) -> Result<PathBuf> {
    let (name, size, md5) = match source {
        Source::Cifar10 => CIFAR10,
        Source::Cifar100 | Source::Cifar100Coarse => CIFAR100,
        Source::Shapes => {
            return Err(Error::config("data", "`shapes` is generated: there is nothing to fetch", "use it as it is"));
        }
        Source::ImageFolder => {
            return Err(Error::config(
                "data",
                "an image folder is your own: there is nothing to fetch",
                "use it as it is",
            ));
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
        let mut file = file::open(path, "open")?;
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
#[path = "../../tests/unit/fetch.rs"]
mod tests;
