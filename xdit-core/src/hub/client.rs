//! The three requests to the hub: the contents of a revision, the metadata of a file, and the bytes of a file.

use super::fault::Fault;
use super::mistaken::without_password;
use super::{HubOptions, MAX_SMALL_BYTES};
use crate::{Error, Result, files};
use serde::Deserialize;
use std::collections::HashMap;
use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use ureq::http::Response;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body, Proxy};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest wait for more data, in the headers or in the middle of a body.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
const MAX_REDIRECTS: usize = 10;
/// The longest time for a listing, in which a server might send a byte now and then.
const LISTING_TIMEOUT: Duration = Duration::from_secs(300);
const LINKED_ETAG: &str = "x-linked-etag";
/// The listing of a repository with 100,000 files takes about 10 MB.
const MAX_LISTING_BYTES: u64 = 64 << 20;

pub(super) struct Client {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
    patience: Duration,
}

/// The contents of a revision.
pub(super) struct Listing {
    pub(super) commit: String,
    pub(super) files: Vec<String>,
    /// Their sizes in bytes, where the hub lists them.
    pub(super) sizes: HashMap<String, u64>,
}

/// The metadata of a file.
pub(super) struct Metadata {
    /// The name of its blob: the SHA-256 of a large file, the git hash of a small one.
    pub(super) etag: String,
    pub(super) bytes: Option<u64>,
}

impl Client {
    pub(super) fn new(options: &HubOptions) -> Result<Self> {
        let config = Agent::config_builder()
            .user_agent(concat!("xdit/", env!("CARGO_PKG_VERSION")))
            // A compressed body would not have the length of the file.
            .accept_encoding("identity")
            .http_status_as_error(false)
            // Redirects are followed here: the response *before* a redirect describes the file, and the token must
            // not be sent elsewhere.
            .max_redirects(0)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_per_read(Some(READ_TIMEOUT))
            .timeout_recv_response(Some(READ_TIMEOUT))
            .tls_config(TlsConfig::builder().root_certs(root_certs(options)?).build())
            .proxy(proxy(options)?);
        Ok(Self {
            agent: config.build().into(),
            endpoint: options.endpoint.clone(),
            token: options.token.clone(),
            patience: options.patience,
        })
    }

    /// How long a request is repeated.
    pub(super) fn patience(&self) -> Duration {
        self.patience
    }

    /// The commit and the files of a revision.
    pub(super) fn listing(&self, model: &str, revision: &str) -> Result<Listing, Fault> {
        #[derive(Deserialize)]
        struct ModelInfo {
            sha: String,
            siblings: Vec<Sibling>,
        }
        #[derive(Deserialize)]
        struct Sibling {
            rfilename: String,
            size: Option<u64>,
        }
        let url = format!(
            "{}/api/models/{model}/revision/{}?blobs=true",
            self.endpoint,
            percent_encoded(revision, "")
        );
        let mut response = self.send(Verb::List, &url)?;
        let text = response.body_mut().with_config().limit(MAX_LISTING_BYTES).read_to_string()?;
        let info: ModelInfo =
            serde_json::from_str(&text).map_err(|error| Fault::strange(error.to_string()))?;
        if !super::cache::is_commit(&info.sha) {
            return Err(Fault::strange(format!("`{}` is not a commit", info.sha)));
        }
        // The names become paths in the cache, so any name that would leave it is dropped.
        let inside = info.siblings.into_iter().filter(|sibling| is_inner_path(&sibling.rfilename));
        let (files, sizes): (Vec<_>, Vec<_>) =
            inside.map(|sibling| (sibling.rfilename.clone(), (sibling.rfilename, sibling.size))).unzip();
        let sizes = sizes.into_iter().filter_map(|(name, size)| Some((name, size?))).collect();
        Ok(Listing { commit: info.sha, files, sizes })
    }

    pub(super) fn file_url(&self, model: &str, commit: &str, file: &str) -> String {
        format!("{}/{model}/resolve/{commit}/{}", self.endpoint, percent_encoded(file, "/"))
    }

    pub(super) fn metadata(&self, url: &str) -> Result<Metadata, Fault> {
        let response = self.send(Verb::Describe, url)?;
        let header = |name| header(&response, name);
        // A large file is stored elsewhere: the redirect to it carries the hash and size in separate headers.
        let linked = header(LINKED_ETAG);
        let bytes = match &linked {
            Some(_) => header("x-linked-size"),
            None => header("content-length"),
        };
        let etag =
            linked.or_else(|| header("etag")).ok_or_else(|| Fault::strange("it has no `ETag`".to_owned()))?;
        let etag = etag.trim_start_matches("W/").trim_matches('"');
        if !is_inner_path(etag) || etag.contains('/') {
            return Err(Fault::strange(format!("`{etag}` is not a usable `ETag`")));
        }
        Ok(Metadata { etag: etag.to_owned(), bytes: bytes.and_then(|bytes| bytes.parse().ok()) })
    }

    /// Requests the bytes of a file from offset `from` on; the status is 206 if the server supports ranges.
    pub(super) fn read(&self, url: &str, from: u64) -> Result<Response<Body>, Fault> {
        self.send(Verb::Get { from }, url)
    }

    /// The first `count` bytes of a file, or all if it has fewer, and the length of the file. A server without ranges
    /// begins to send the whole file, of which no more is read.
    pub(super) fn head(&self, url: &str, count: u64) -> Result<(Vec<u8>, u64), Fault> {
        let mut response = self.send(Verb::Head { count }, url)?;
        let length = match response.status().as_u16() {
            206 => {
                let range = header(&response, "content-range").unwrap_or_default();
                let length =
                    range.strip_prefix("bytes 0-").and_then(|range| range.split_once('/')?.1.parse().ok());
                length.ok_or_else(|| {
                    Fault::strange(format!("it sent the range `{range}`, which was not requested"))
                })?
            }
            _ => header(&response, "content-length")
                .and_then(|length| length.parse().ok())
                .ok_or_else(|| Fault::strange("it has no `Content-Length`".to_owned()))?,
        };
        let wanted = count.min(length);
        let mut bytes = Vec::new();
        response.body_mut().as_reader().take(wanted).read_to_end(&mut bytes)?;
        match bytes.len() as u64 == wanted {
            true => Ok((bytes, length)),
            false => Err(Fault::Network("the connection was interrupted".to_owned())),
        }
    }

    /// Sends a request and follows redirects; the token is sent only to the endpoint.
    fn send(&self, verb: Verb, url: &str) -> Result<Response<Body>, Fault> {
        let (mut url, mut redirects) = (url.to_owned(), 0);
        loop {
            let mut request = match verb {
                Verb::Describe => self.agent.head(&url),
                Verb::Get { .. } | Verb::Head { .. } => self.agent.get(&url),
                Verb::List => self.agent.get(&url).config().timeout_recv_body(Some(LISTING_TIMEOUT)).build(),
            };
            let range = match verb {
                Verb::Get { from: from @ 1.. } => Some(format!("bytes={from}-")),
                Verb::Head { count } => Some(format!("bytes=0-{}", count - 1)),
                _ => None,
            };
            if let Some(range) = range {
                request = request.header("Range", range);
            }
            if let Some(token) = self.token.as_ref().filter(|_| origin(&url) == origin(&self.endpoint)) {
                request = request.header("Authorization", format!("Bearer {token}"));
            }
            let response = request.call()?;
            let status = response.status();
            let described = matches!(verb, Verb::Describe) && header(&response, LINKED_ETAG).is_some();
            if status.is_success() || (status.is_redirection() && described) {
                return Ok(response);
            }
            match header(&response, "location").filter(|_| status.is_redirection()) {
                Some(_) if redirects == MAX_REDIRECTS => {
                    return Err(Fault::strange(format!("more than {MAX_REDIRECTS} redirects")));
                }
                Some(location) => url = redirected(&url, &location)?,
                None => {
                    let (code, pause) = (header(&response, "x-error-code"), retry_after(&response));
                    return Err(Fault::Status { status: status.as_u16(), code, pause });
                }
            }
            redirects += 1;
        }
    }
}

#[derive(Clone, Copy)]
enum Verb {
    /// A small body.
    List,
    /// The response without its body.
    Describe,
    /// The body from this byte on.
    Get { from: u64 },
    /// At least one byte, the first `count` of the body.
    Head { count: u64 },
}

pub(super) fn header(response: &Response<Body>, name: &str) -> Option<String> {
    Some(response.headers().get(name)?.to_str().ok()?.to_owned())
}

/// The scheme, host and port of a URL.
fn origin(url: &str) -> &str {
    let host = url.find("://").map_or(0, |at| at + 3);
    let end = url[host..].find(['/', '?', '#']).map_or(url.len(), |at| host + at);
    &url[..end]
}

/// The time that a server which is busy (429 or 503) asks to wait: a number of seconds, or a date.
fn retry_after(response: &Response<Body>) -> Option<Duration> {
    let busy = matches!(response.status().as_u16(), 429 | 503);
    let asked = header(response, "retry-after").filter(|_| busy)?;
    // The server's own clock counts, since this machine's might be wrong.
    let now = header(response, "date").and_then(|date| httpdate::parse_http_date(&date).ok());
    pause_until(asked.trim(), now.unwrap_or_else(SystemTime::now))
}

/// The pause that the value of a `Retry-After` header asks for at the time `now`; none for a date that has passed.
///
/// # Source
/// RFC 9110, section 10.2.3.
fn pause_until(asked: &str, now: SystemTime) -> Option<Duration> {
    if asked.bytes().all(|byte| byte.is_ascii_digit()) {
        // A number that is too large for its type is too long, too.
        return (!asked.is_empty()).then(|| Duration::from_secs(asked.parse().unwrap_or(u64::MAX)));
    }
    let date = httpdate::parse_http_date(asked).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

/// The target of a `Location` header received from `url`.
///
/// # Source
/// RFC 3986, section 5.2, without the removal of `..`, which servers resolve.
fn redirected(url: &str, location: &str) -> Result<String, Fault> {
    let scheme = &url[..url.find("//").unwrap_or(0)];
    let path = &url[..url.find(['?', '#']).unwrap_or(url.len())];
    let folder =
        path.rfind('/').filter(|at| *at > origin(url).len() - 1).map_or(origin(url), |at| &path[..at]);
    let has_scheme = location.find(':').is_some_and(|colon| !location[..colon].contains(['/', '?', '#']));
    let target = match location {
        _ if has_scheme => location.to_owned(),
        _ if location.starts_with("//") => format!("{scheme}{location}"),
        _ if location.starts_with('/') => format!("{}{location}", origin(url)),
        _ if location.starts_with('?') => format!("{path}{location}"),
        _ => format!("{folder}/{location}"),
    };
    let target = target[..target.find('#').unwrap_or(target.len())].to_owned();
    let secure = target.starts_with("https://");
    let uri: Result<ureq::http::Uri, _> = target.parse();
    match uri {
        // An address that was encrypted leads to none that is not.
        Ok(uri)
            if uri.host().is_some() && (secure || target.starts_with("http://") && scheme != "https:") =>
        {
            Ok(target)
        }
        _ => Err(Fault::strange(format!(
            "it redirects to `{}`, which is not followed",
            without_password(location)
        ))),
    }
}

/// Whether a path from the server stays inside the folder that it is joined to.
fn is_inner_path(path: &str) -> bool {
    let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
    path.split('/').all(plain) && !path.contains(['\\', ':']) && !path.contains(char::is_control)
}

/// `text` encoded as a part of a URL; the characters in `keep` stay as they are.
fn percent_encoded(text: &str, keep: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        let char = char::from(byte);
        if char.is_ascii_alphanumeric() || "-._~".contains(char) || keep.contains(char) {
            encoded.push(char);
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

fn proxy(options: &HubOptions) -> Result<Option<Proxy>> {
    let Some(url) = &options.proxy else { return Ok(None) };
    let built = Proxy::new(url).and_then(|parsed| {
        let mut builder = Proxy::builder(parsed.protocol()).host(parsed.host()).port(parsed.port());
        if let Some(username) = parsed.username() {
            builder = builder.username(username);
        }
        if let Some(password) = parsed.password() {
            builder = builder.password(password);
        }
        let exceptions = options.no_proxy.iter().flat_map(|hosts| hosts.split(','));
        exceptions.fold(builder, |builder, host| builder.no_proxy(host.trim())).build()
    });
    // The URL is not repeated, because it may contain a password.
    let invalid = |_| {
        Error::usage("the proxy URL is not valid")
            .hint("set `HTTPS_PROXY` to a URL like `http://host:port`; list the hosts to reach directly in `NO_PROXY`")
    };
    built.map(Some).map_err(invalid)
}

fn root_certs(options: &HubOptions) -> Result<RootCerts> {
    let Some(file) = &options.ca_file else { return Ok(RootCerts::WebPki) };
    let unusable = |why: String| {
        Error::failure(format!("cannot use the certificates in `{}`: {why}", file.display()))
            .hint("unset `SSL_CERT_FILE` to trust the public certificate authorities")
    };
    let pem = files::read(file, MAX_SMALL_BYTES).map_err(|error| unusable(error.message().to_owned()))?;
    let certificates: Vec<Certificate<'static>> = parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if certificates.is_empty() {
        return Err(unusable("it contains none".to_owned()));
    }
    Ok(RootCerts::Specific(Arc::new(certificates)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_a_number_of_seconds_or_a_date() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:00 GMT").unwrap();
        let seconds = |asked| pause_until(asked, now).map(|pause| pause.as_secs());
        for (asked, expected) in [
            ("0", Some(0)),
            ("120", Some(120)),
            ("99999999999999999999999", Some(u64::MAX)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(37)),
            // Older forms, which are still valid.
            ("Sunday, 06-Nov-94 08:51:00 GMT", Some(120)),
            ("Sun Nov  6 08:48:00 1994", Some(0)),
            ("", None),
            ("-1", None),
            ("soon", None),
        ] {
            assert_eq!(seconds(asked), expected, "{asked}");
        }
    }

    #[test]
    fn locations_are_addresses() {
        let from = |location| redirected("https://hub.org/o/n/file?x=1", location).ok();
        for (location, target) in [
            ("https://cdn.org/a?b=c#d", Some("https://cdn.org/a?b=c")),
            ("//cdn.org/a", Some("https://cdn.org/a")),
            ("/a/b", Some("https://hub.org/a/b")),
            ("other", Some("https://hub.org/o/n/other")),
            ("?y=https://a.org", Some("https://hub.org/o/n/file?y=https://a.org")),
            ("/signed?to=https://a.org", Some("https://hub.org/signed?to=https://a.org")),
            ("http://cdn.org/a", None),
            ("file:///etc/passwd", None),
            ("ftp://a.org/", None),
            ("https://", None),
            ("https://a b/", None),
        ] {
            assert_eq!(from(location).as_deref(), target, "{location}");
        }
        assert_eq!(redirected("http://hub.org", "a").unwrap(), "http://hub.org/a");
        assert_eq!(redirected("http://hub.org/x", "https://a.org/").unwrap(), "https://a.org/");
    }
}
