//! A hub on 127.0.0.1: one repository, `o/r`, and switches for everything that can go wrong.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use sha1::Sha1;
use sha2::{Digest, Sha256};

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A request as the server saw it.
#[derive(Clone, Debug)]
pub struct Seen {
    pub path: String,
    pub host: String,
    pub range: Option<String>,
    pub authorization: Option<String>,
}

#[derive(Default)]
pub struct State {
    pub files: Mutex<BTreeMap<String, Vec<u8>>>,
    pub seen: Mutex<Vec<Seen>>,
    /// Bytes of file bodies that were sent.
    pub served: AtomicU64,
    /// Every connection ends after so many bytes of a body; 0 is never.
    pub cut_after: AtomicU64,
    /// A body stands still after so many bytes; 0 is never.
    pub stall_after: AtomicU64,
    /// Ranges are ignored: every answer is the whole file.
    pub no_ranges: AtomicBool,
    /// The first byte of every body is another.
    pub wrong_bytes: AtomicBool,
    /// Files come from another host, by a redirect.
    pub redirect: AtomicBool,
    /// Files are small git blobs, outside LFS.
    pub git: AtomicBool,
    /// Each 64 KiB of a body takes so many milliseconds.
    pub slow: AtomicU64,
    /// The next so many requests are answered 503.
    pub busy: AtomicU64,
    /// With `busy`: they are answered 429 instead, and asked to wait so many seconds.
    pub retry_after: Mutex<Option<u64>>,
    /// The licence that the repository states; none: `mit`.
    pub licence: Mutex<Option<String>>,
    /// The token without which the answer is 401.
    pub token: Mutex<Option<String>>,
}

pub struct Server {
    pub state: Arc<State>,
    pub port: u16,
}

impl Server {
    /// A server with these files.
    pub fn new(files: &[(&str, Vec<u8>)]) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State::default());
        *state.files.lock().unwrap() =
            files.iter().map(|(path, bytes)| ((*path).to_owned(), bytes.clone())).collect();
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                thread::spawn(move || drop(answer(&state, port, stream)));
            }
        });
        Server { state, port }
    }

    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn served(&self) -> u64 {
        self.state.served.load(SeqCst)
    }

    /// The requests for files, not for the listing.
    pub fn seen_files(&self) -> Vec<Seen> {
        let seen = self.state.seen.lock().unwrap();
        seen.iter().filter(|seen| !seen.path.starts_with("/api/")).cloned().collect()
    }
}

/// Answers one request and closes.
fn answer(state: &State, port: u16, mut stream: TcpStream) -> std::io::Result<()> {
    let seen = read_request(&stream)?;
    state.seen.lock().unwrap().push(seen.clone());
    if state.busy.load(SeqCst) > 0 {
        state.busy.fetch_sub(1, SeqCst);
        return match *state.retry_after.lock().unwrap() {
            None => head(&mut stream, "503 Service Unavailable", "Content-Length: 0\r\n"),
            Some(seconds) => {
                let wait = format!("Retry-After: {seconds}\r\nContent-Length: 0\r\n");
                head(&mut stream, "429 Too Many Requests", &wait)
            }
        };
    }
    let token = state.token.lock().unwrap().clone();
    let on_hub = seen.host.starts_with("127.0.0.1");
    if on_hub && token.is_some_and(|token| seen.authorization != Some(format!("Bearer {token}"))) {
        return head(&mut stream, "401 Unauthorized", "X-Error-Code: GatedRepo\r\nContent-Length: 0\r\n");
    }
    let Some(path) = seen.path.strip_prefix("/o/r/resolve/").map(|rest| rest.split_once('/').unwrap().1)
    else {
        return listing(state, &seen, &mut stream);
    };
    if state.redirect.load(SeqCst) && on_hub {
        let location = format!("Location: http://localhost:{port}{}\r\nContent-Length: 0\r\n", seen.path);
        return head(&mut stream, "302 Found", &location);
    }
    let files = state.files.lock().unwrap();
    let Some(bytes) = files.get(path).cloned() else {
        return head(&mut stream, "404 Not Found", "X-Error-Code: EntryNotFound\r\nContent-Length: 0\r\n");
    };
    drop(files);
    body(state, &seen, bytes, &mut stream)
}

fn read_request(stream: &TcpStream) -> std::io::Result<Seen> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next().unwrap_or(Ok(String::new()))?;
    let path = first.split(' ').nth(1).unwrap_or("/").replace("%20", " ");
    let mut seen = Seen { path, host: String::new(), range: None, authorization: None };
    for line in lines {
        let line = line?;
        match line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned())) {
            None => break,
            Some((name, value)) if name == "host" => seen.host = value,
            Some((name, value)) if name == "range" => seen.range = Some(value),
            Some((name, value)) if name == "authorization" => seen.authorization = Some(value),
            Some(_) => {}
        }
    }
    Ok(seen)
}

fn listing(state: &State, seen: &Seen, stream: &mut TcpStream) -> std::io::Result<()> {
    let revision =
        seen.path.strip_prefix("/api/models/o/r/revision/").and_then(|rest| rest.split('?').next());
    match revision {
        Some("main" | COMMIT) => {}
        Some(_) => {
            return head(stream, "404 Not Found", "X-Error-Code: RevisionNotFound\r\nContent-Length: 0\r\n");
        }
        None => {
            return head(stream, "401 Unauthorized", "X-Error-Code: RepoNotFound\r\nContent-Length: 0\r\n");
        }
    }
    let hex = |bytes: &[u8]| -> String { bytes.iter().map(|b| format!("{b:02x}")).collect() };
    let sibling = |(path, bytes): (&String, &Vec<u8>)| {
        let git =
            hex(&Sha1::new_with_prefix(format!("blob {}\0", bytes.len())).chain_update(bytes).finalize());
        let mut sibling = serde_json::json!({ "rfilename": path, "size": bytes.len(), "blobId": git });
        if !state.git.load(SeqCst) {
            let sha256 = hex(&Sha256::digest(bytes));
            sibling["lfs"] = serde_json::json!({ "sha256": sha256, "size": bytes.len(), "pointerSize": 134 });
        }
        sibling
    };
    let siblings: Vec<_> = state.files.lock().unwrap().iter().map(sibling).collect();
    let licence = state.licence.lock().unwrap().clone().unwrap_or_else(|| "mit".into());
    let card = serde_json::json!({ "license": licence });
    let info = serde_json::json!({ "id": "o/r", "sha": COMMIT, "siblings": siblings, "cardData": card });
    let text = info.to_string();
    head(stream, "200 OK", &format!("Content-Type: application/json\r\nContent-Length: {}\r\n", text.len()))?;
    stream.write_all(text.as_bytes())
}

fn body(state: &State, seen: &Seen, mut bytes: Vec<u8>, stream: &mut TcpStream) -> std::io::Result<()> {
    let total = bytes.len();
    if state.wrong_bytes.load(SeqCst) {
        bytes[0] ^= 1;
    }
    let from =
        seen.range.as_deref().and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    let from: usize = from.filter(|_| !state.no_ranges.load(SeqCst)).unwrap_or(0);
    let length = format!("Content-Length: {}\r\n", total - from);
    if from > 0 {
        let range = format!("Content-Range: bytes {from}-{}/{total}\r\n", total - 1);
        head(stream, "206 Partial Content", &format!("{length}{range}"))?;
    } else {
        head(stream, "200 OK", &length)?;
    }
    let limit =
        |switch: &AtomicU64| Some(switch.load(SeqCst) as usize).filter(|&n| n > 0).unwrap_or(usize::MAX);
    let (cut, stall) = (limit(&state.cut_after), limit(&state.stall_after));
    let sent = &bytes[from..from + (total - from).min(cut).min(stall)];
    for chunk in sent.chunks(64 << 10) {
        stream.write_all(chunk)?;
        state.served.fetch_add(chunk.len() as u64, SeqCst);
        thread::sleep(Duration::from_millis(state.slow.load(SeqCst)));
    }
    if stall < total - from {
        thread::sleep(Duration::from_secs(120));
    }
    Ok(())
}

fn head(stream: &mut TcpStream, status: &str, headers: &str) -> std::io::Result<()> {
    write!(stream, "HTTP/1.1 {status}\r\nConnection: close\r\n{headers}\r\n")
}
