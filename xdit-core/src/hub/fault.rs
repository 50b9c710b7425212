//! Reasons for a failed request to the hub, and their error messages.

use crate::Error;
use std::io;
use std::time::Duration;

/// A request that failed.
#[derive(Debug)]
pub(super) enum Fault {
    /// No response, or an incomplete one.
    Network(String),
    /// A response with an error status; the code is the hub's name for the reason. A server may ask for a pause.
    Status { status: u16, code: Option<String>, pause: Option<Duration> },
    /// A response that does not follow the hub's protocol.
    Strange(String),
}

/// The subject of a request, for the error message.
#[derive(Clone)]
pub(super) struct Subject<'a> {
    /// Without a password.
    pub(super) endpoint: String,
    pub(super) model: &'a str,
    pub(super) revision: &'a str,
    pub(super) file: Option<&'a str>,
}

impl Fault {
    pub(super) fn strange(why: String) -> Self {
        Self::Strange(why)
    }

    /// Whether the same request may succeed later.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Network(_) => true,
            Self::Status { status, .. } => matches!(status, 408 | 429 | 500..),
            Self::Strange(_) => false,
        }
    }

    /// Whether the server answered.
    pub(super) fn has_answer(&self) -> bool {
        !matches!(self, Self::Network(_))
    }

    /// Whether a cached copy may be used instead: always, unless the hub reports that the model or revision is
    /// missing.
    pub(super) fn leaves_the_cache(&self) -> bool {
        !matches!(self, Self::Status { status: 404, .. })
    }

    /// Turns the fault into an error: one sentence and a remedy.
    pub(super) fn into_error(self, subject: Subject<'_>) -> Error {
        let Subject { endpoint, model, revision, file } = subject;
        let what = file.map_or_else(|| format!("`{model}`"), |file| format!("`{file}` of `{model}`"));
        match self {
            Self::Network(why) => {
                // The TLS library reports the reason only as text.
                let hint = if why.contains("certificate") {
                        "set `SSL_CERT_FILE` to the certificates of the mirror or proxy"
                    } else {
                        "check the network, or set `HF_ENDPOINT` to a mirror; a fully cached model needs neither"
                };
                Error::failure(format!("cannot get {what} from `{endpoint}`: {why}")).hint(hint)
            }
            Self::Strange(why) => {
                Error::failure(format!("the response of `{endpoint}` for {what} is not usable: {why}"))
                    .hint("check that `HF_ENDPOINT` is a Hugging Face hub or a mirror of it")
            }
            Self::Status { status: 401, .. } => {
                Error::failure(format!("`{endpoint}` does not show {what} without a valid token (HTTP 401)")).hint(
                    format!(
                        "check the spelling; for a gated or private model, accept its licence at `{endpoint}/{model}` and set `HF_TOKEN`"
                    ),
                )
            }
            Self::Status { status: 403, .. } => Error::failure(format!("access to {what} is refused (HTTP 403)"))
                .hint(format!(
                    "accept the model's licence at `{endpoint}/{model}` and set `HF_TOKEN` to a token of that account"
                )),
            Self::Status { status: 404, code, .. } => match (code.as_deref(), file) {
                (Some("RevisionNotFound"), _) => Error::usage(format!("`{model}` has no revision `{revision}`"))
                    .hint("give a branch, a tag or a full commit hash, or omit the revision"),
                (_, Some(file)) => Error::failure(format!("`{model}` has no file `{file}` at revision `{revision}`"))
                    .hint("choose another revision, or a repository in the full diffusers layout"),
                (Some("RepoNotFound"), None) => Error::usage(format!("there is no model `{model}` on `{endpoint}`"))
                    .hint("check the spelling; a private model needs `HF_TOKEN`"),
                (_, None) => {
                    Error::usage(format!("there is no model `{model}` with revision `{revision}` on `{endpoint}`"))
                        .hint("check the spelling of both; a private model needs `HF_TOKEN`")
                }
            },
            Self::Status { status: 429, pause, .. } => {
                Error::failure(format!("`{endpoint}` temporarily refuses {what}: too many requests (HTTP 429)"))
                    .hint(match pause {
                        Some(pause) => format!("wait {} s, as it asks, or set `HF_TOKEN` for a higher limit", pause.as_secs()),
                        None => "wait a few minutes, or set `HF_TOKEN` for a higher limit".to_owned(),
                    })
            }
            Self::Status { status, .. } => {
                Error::failure(format!("`{endpoint}` failed to deliver {what} (HTTP {status})"))
                    .hint("try again later; the partial download is kept and resumed")
            }
        }
    }
}

impl From<ureq::Error> for Fault {
    fn from(error: ureq::Error) -> Self {
        Self::Network(match error {
            ureq::Error::HostNotFound => "the host was not found".to_owned(),
            ureq::Error::Io(error) => return Self::from(error),
            ureq::Error::Timeout(_) => "the request timed out".to_owned(),
            // These repeat the address, which may contain a password.
            ureq::Error::BadUri(_) | ureq::Error::Http(_) => "its address is not valid".to_owned(),
            other => other.to_string(),
        })
    }
}

impl From<io::Error> for Fault {
    /// Converts a connection error; disk errors are handled separately.
    fn from(error: io::Error) -> Self {
        Self::Network(match error.kind() {
            io::ErrorKind::ConnectionRefused => "the connection was refused".to_owned(),
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
                "the connection was interrupted".to_owned()
            }
            _ => error.to_string(),
        })
    }
}
