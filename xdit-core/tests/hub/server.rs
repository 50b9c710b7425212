//! A loopback hub with just enough HTTP to list a model, describe and send its files, and misbehave.

use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

pub const MODEL: &str = "someone/some-model";
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    /// Header names are in lower case.
    pub headers: BTreeMap<String, String>,
}

#[derive(Clone, Default)]
pub struct Reply {
    pub status: u16,
    /// An empty `Content-Length` is left out.
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    /// Closes the connection after this many bytes of the body, although `Content-Length` announces all of them.
    pub cut_after: Option<usize>,
}

impl Reply {
    pub fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    pub fn refusal(status: u16, code: &str) -> Self {
        Self { status, headers: vec![("X-Error-Code", code.to_owned())], ..Self::default() }
    }
}

/// A running server, and a log of its requests.
pub struct Server {
    pub url: String,
    log: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    pub fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let log = Arc::new(Mutex::new(Vec::new()));
        let (seen, answer) = (log.clone(), Arc::new(answer));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (seen, answer) = (seen.clone(), answer.clone());
                thread::spawn(move || {
                    let Some(request) = read_request(&stream) else { return };
                    seen.lock().unwrap().push(request.clone());
                    send(&stream, &request, answer(&request));
                });
            }
        });
        Self { url, log }
    }

    /// The requests since the last call.
    pub fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.log.lock().unwrap())
    }

    /// The method and path of each request since the last call.
    pub fn lines(&self) -> Vec<String> {
        self.requests().iter().map(|request| format!("{} {}", request.method, request.path)).collect()
    }
}

fn read_request(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let first = lines.next()?;
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next()?, words.next()?);
    let headers = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned())))
        .collect();
    Some(Request { method, path, headers })
}

/// Ignores errors, because the client may close the connection once it has the data that it needs.
fn send(mut stream: &TcpStream, request: &Request, reply: Reply) {
    let mut head = format!("HTTP/1.1 {} Answer\r\nConnection: close\r\n", reply.status);
    if !reply.headers.iter().any(|(name, _)| *name == "Content-Length") {
        head += &format!("Content-Length: {}\r\n", reply.body.len());
    }
    for (name, value) in reply.headers.iter().filter(|(_, value)| !value.is_empty()) {
        head += &format!("{name}: {value}\r\n");
    }
    let body = match request.method.as_str() {
        "HEAD" => &[],
        _ => &reply.body[..reply.cut_after.unwrap_or(reply.body.len())],
    };
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(b"\r\n"));
    let _ = stream.write_all(body);
}

/// The files of [`MODEL`] at [`COMMIT`].
#[derive(Clone)]
pub struct Files(pub BTreeMap<String, Vec<u8>>);

impl Files {
    pub fn new(files: &[(&str, &[u8])]) -> Self {
        Self(files.iter().map(|&(name, bytes)| (name.to_owned(), bytes.to_vec())).collect())
    }

    /// The reply of a hub without faults.
    pub fn answer(&self, request: &Request) -> Reply {
        if request.path.starts_with(&format!("/api/models/{MODEL}/revision/")) {
            return self.listing();
        }
        let file = request.path.strip_prefix(&format!("/{MODEL}/resolve/{COMMIT}/"));
        match file.and_then(|file| self.0.get(file)) {
            Some(bytes) => content(request, file.unwrap(), bytes),
            None => Reply::refusal(404, "EntryNotFound"),
        }
    }

    pub fn listing(&self) -> Reply {
        let siblings: Vec<String> = self
            .0
            .iter()
            .map(|(name, bytes)| format!(r#"{{"rfilename": "{name}", "size": {}}}"#, bytes.len()))
            .collect();
        let body = format!(r#"{{"sha": "{COMMIT}", "siblings": [{}]}}"#, siblings.join(", "));
        Reply { status: 200, body: body.into_bytes(), ..Reply::default() }
    }
}

/// The reply with a file, or with the requested range of it; weights get the headers of a large file.
pub fn content(request: &Request, file: &str, bytes: &[u8]) -> Reply {
    let mut headers = vec![("ETag", format!("\"{}\"", etag(file, bytes)))];
    if file.ends_with(".safetensors") {
        headers.push(("X-Linked-Etag", format!("\"{}\"", etag(file, bytes))));
        headers.push(("X-Linked-Size", bytes.len().to_string()));
    }
    let Some(range) = request.headers.get("range") else {
        return Reply { status: 200, headers, body: bytes.to_vec(), cut_after: None };
    };
    let (from, last) = range.strip_prefix("bytes=").and_then(|range| range.split_once('-')).unwrap();
    let (from, end) = (from.parse().unwrap(), bytes.len());
    let end = last.parse().map_or(end, |last: usize| end.min(last + 1));
    headers.push(("Content-Range", format!("bytes {from}-{}/{}", end - 1, bytes.len())));
    Reply { status: 206, headers, body: bytes[from..end].to_vec(), cut_after: None }
}

/// The SHA-256 of a weight file; git's SHA-1 of a small one.
pub fn etag(file: &str, bytes: &[u8]) -> String {
    match file.ends_with(".safetensors") {
        true => format!("{:x}", Sha256::digest(bytes)),
        false => {
            format!("{:x}", Sha1::digest([format!("blob {}\0", bytes.len()).as_bytes(), bytes].concat()))
        }
    }
}
