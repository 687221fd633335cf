//! The tests of `src/data/fetch.rs`: downloads from a server on this machine.

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
