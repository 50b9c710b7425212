//! The download of one file: started or resumed, checked, and only then renamed.

use super::cache::open_own;
use super::client::{Client, Metadata, header};
use super::fault::Fault;
use super::patience::Patience;
use super::{Download, MAX_SMALL_BYTES};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const BUFFER_BYTES: usize = 256 << 10;
/// Fewer new bytes do not renew the patience. An attempt that gets fewer bytes in each [`WINDOW`] is given up: a server may send a byte now and then for ever.
const MIN_PROGRESS_BYTES: u64 = 64 << 10;
const WINDOW: Duration = Duration::from_secs(60);

/// The reason why a file could not be downloaded.
pub(super) enum FetchError {
    /// The hub or the network failed.
    Hub(Fault),
    /// The disk failed.
    Disk(io::Error),
    /// The contents differ from the announced ones; the received bytes have been deleted.
    Corrupt(String),
}

impl From<Fault> for FetchError {
    fn from(fault: Fault) -> Self {
        Self::Hub(fault)
    }
}

/// Downloads `url` to `blob` through `incomplete`, which is continued if an earlier run left it.
///
/// The caller holds the lock of the blob, or passes an `incomplete` that no other process uses.
pub(super) fn fetch(
    client: &Client,
    url: &str,
    metadata: &Metadata,
    incomplete: PathBuf,
    blob: &Path,
    file: &str,
    progress: &mut dyn FnMut(Download<'_>),
) -> Result<(), FetchError> {
    let limit = if file.ends_with(".safetensors") { None } else { Some(MAX_SMALL_BYTES) };
    if let (Some(bytes), Some(limit)) = (metadata.bytes, limit)
        && bytes > limit
    {
        return Err(FetchError::Corrupt(format!(
            "it has {bytes} bytes, more than the {limit} of such a file"
        )));
    }
    let mut partial = Partial::open(incomplete).map_err(FetchError::Disk)?;
    let mut total = metadata.bytes;
    if total.is_some_and(|total| partial.bytes > total) {
        partial.restart().map_err(FetchError::Disk)?;
    }
    let (mut most_bytes, mut patience) = (partial.bytes, Patience::new(client.patience()));
    // A resumed file may already be complete, if the earlier run ended just before its rename.
    while total.is_none_or(|total| partial.bytes < total) {
        let report = &mut |done_bytes, total_bytes| {
            progress(Download { done_bytes, total_bytes, ..Download::begun(file) });
        };
        match attempt(client, url, &mut partial, (&mut total, limit), report) {
            Ok(()) => break,
            Err(FetchError::Hub(fault)) => {
                if partial.bytes >= most_bytes + MIN_PROGRESS_BYTES {
                    most_bytes = partial.bytes;
                    patience.renew();
                }
                let Some(pause) = patience.pause(&fault) else {
                    let of = total.map_or(String::new(), |total| format!(" of {total}"));
                    return Err(match fault {
                        Fault::Network(why) => {
                            Fault::Network(format!("{why} after {}{of} bytes", partial.bytes)).into()
                        }
                        fault => fault.into(),
                    });
                };
                let (done_bytes, total_bytes) = (partial.bytes, total);
                progress(Download { pause: Some(pause), done_bytes, total_bytes, ..Download::begun(file) });
                std::thread::sleep(pause);
            }
            Err(error) => return Err(error),
        }
    }
    let done_bytes = partial.bytes;
    partial.finish(&metadata.etag, total, blob)?;
    progress(Download { done_bytes, total_bytes: Some(done_bytes), finished: true, ..Download::begun(file) });
    Ok(())
}

/// Makes one request, from the end of the partial file to the end of the body.
fn attempt(
    client: &Client,
    url: &str,
    partial: &mut Partial,
    (total, limit): (&mut Option<u64>, Option<u64>),
    report: &mut dyn FnMut(u64, Option<u64>),
) -> Result<(), FetchError> {
    let mut response = match client.read(url, partial.bytes) {
        // The partial file is longer than the contents, whose length was not announced.
        Err(Fault::Status { status: 416, .. }) if partial.bytes > 0 => {
            partial.restart().map_err(FetchError::Disk)?;
            client.read(url, 0)?
        }
        response => response?,
    };
    if response.status() == 206 {
        let range = header(&response, "content-range").unwrap_or_default();
        if !range.starts_with(&format!("bytes {}-", partial.bytes)) {
            return Err(
                Fault::strange(format!("it sent the range `{range}`, which was not requested")).into()
            );
        }
    } else if partial.bytes > 0 {
        // The server ignores the range and sends the whole file.
        partial.restart().map_err(FetchError::Disk)?;
    }
    let length: Option<u64> = header(&response, "content-length").and_then(|length| length.parse().ok());
    *total = total.or(length.map(|length| partial.bytes + length));
    // The server may not fill the disk with more than it announced.
    let Some(most) = total.iter().chain(&limit).min().copied() else {
        return Err(Fault::strange("it does not announce its length".to_owned()).into());
    };

    report(partial.bytes, *total);
    let mut body = response.body_mut().as_reader();
    let mut buffer = vec![0; BUFFER_BYTES];
    let (mut window, mut before) = (Instant::now(), partial.bytes);
    loop {
        if window.elapsed() > WINDOW {
            if partial.bytes - before < MIN_PROGRESS_BYTES {
                let (bytes, seconds) = (partial.bytes - before, WINDOW.as_secs());
                return Err(Fault::Network(format!("only {bytes} bytes came in {seconds} seconds")).into());
            }
            (window, before) = (Instant::now(), partial.bytes);
        }
        let read = match body.read(&mut buffer) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Fault::from(error).into()),
        };
        if read == 0 {
            return match *total {
                Some(total) if partial.bytes < total => {
                    Err(Fault::Network("the connection was interrupted".to_owned()).into())
                }
                _ => Ok(()),
            };
        }
        if partial.bytes + read as u64 > most {
            drop(body);
            partial.delete().map_err(FetchError::Disk)?;
            return Err(FetchError::Corrupt(format!("more than the announced {most} bytes were sent")));
        }
        partial.append(&buffer[..read]).map_err(FetchError::Disk)?;
        report(partial.bytes, *total);
    }
}

/// The received part of a file.
struct Partial {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl Partial {
    fn open(path: PathBuf) -> io::Result<Self> {
        let mut file = open_own(&path, OpenOptions::new().read(true))?;
        let bytes = file.seek(SeekFrom::End(0))?;
        Ok(Self { path, file, bytes })
    }

    fn append(&mut self, chunk: &[u8]) -> io::Result<()> {
        self.file.write_all(chunk)?;
        self.bytes += chunk.len() as u64;
        Ok(())
    }

    fn restart(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.bytes = 0;
        Ok(())
    }

    fn delete(&self) -> io::Result<()> {
        fs::remove_file(&self.path)
    }

    /// Checks the contents and renames the file to `blob`, or deletes it.
    fn finish(mut self, etag: &str, total: Option<u64>, blob: &Path) -> Result<(), FetchError> {
        let wrong = if total.is_some_and(|total| total != self.bytes) {
            Some(format!("{} bytes were received, not {}", self.bytes, total.unwrap_or_default()))
        } else {
            self.unlike(etag).map_err(FetchError::Disk)?
        };
        if let Some(wrong) = wrong {
            self.delete().map_err(FetchError::Disk)?;
            return Err(FetchError::Corrupt(wrong));
        }
        // Synced before the rename, so that a blob is complete even after a power failure.
        self.file.sync_all().and_then(|()| fs::rename(&self.path, blob)).map_err(FetchError::Disk)
    }

    /// The difference between the contents and the hash in `etag`, if there is one: the SHA-256 of a large file, or git's
    /// SHA-1 of a small one, for which some mirrors have the plain SHA-1. Other names say nothing of the contents.
    ///
    /// The whole file is read again, which covers what an earlier run left, and what the disk made of it.
    fn unlike(&mut self, etag: &str) -> io::Result<Option<String>> {
        if !etag.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Ok(None);
        }
        let is = |found: String| found.eq_ignore_ascii_case(etag);
        self.file.seek(SeekFrom::Start(0))?;
        let (same, name) = match etag.len() {
            64 => {
                let mut hash = Sha256::new();
                io::copy(&mut self.file, &mut hash)?;
                (is(format!("{:x}", hash.finalize())), "SHA-256")
            }
            40 => {
                let (mut plain, mut git) = (Sha1::new(), Sha1::new());
                git.update(format!("blob {}\0", self.bytes));
                let mut contents = Vec::new();
                self.file.read_to_end(&mut contents)?;
                plain.update(&contents);
                git.update(&contents);
                (is(format!("{:x}", git.finalize())) || is(format!("{:x}", plain.finalize())), "SHA-1")
            }
            _ => (true, ""),
        };
        Ok((!same).then(|| format!("its {name} is not `{etag}`")))
    }
}
