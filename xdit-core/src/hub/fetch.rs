//! The download of one file: started or resumed, checked, and only then renamed.

use super::Download;
use super::client::{Client, Metadata, header};
use super::fault::Fault;
use sha2::{Digest, Sha256};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

const BUFFER_BYTES: usize = 256 << 10;
/// Consecutive attempts without a new byte before the download is given up.
const FRUITLESS_ATTEMPTS: u32 = 3;
const PAUSE: Duration = Duration::from_millis(500);

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
    let mut partial = Partial::open(incomplete, metadata.sha256().is_some()).map_err(FetchError::Disk)?;
    let mut total = metadata.bytes;
    if total.is_some_and(|total| partial.bytes > total) {
        partial.restart().map_err(FetchError::Disk)?;
    }
    let (mut most_bytes, mut fruitless) = (partial.bytes, 0);
    // A resumed file may already be complete, if the earlier run ended just before its rename.
    while total.is_none_or(|total| partial.bytes < total) {
        let report = &mut |done_bytes, total_bytes| {
            progress(Download { file, done_bytes, total_bytes, finished: false });
        };
        match attempt(client, url, &mut partial, &mut total, report) {
            Ok(()) => break,
            Err(FetchError::Hub(fault)) if fault.is_transient() => {
                fruitless = if partial.bytes > most_bytes { 0 } else { fruitless + 1 };
                most_bytes = most_bytes.max(partial.bytes);
                if fruitless == FRUITLESS_ATTEMPTS {
                    let of = total.map_or(String::new(), |total| format!(" of {total}"));
                    return Err(match fault {
                        Fault::Network(why) => {
                            Fault::Network(format!("{why} after {}{of} bytes", partial.bytes)).into()
                        }
                        fault => fault.into(),
                    });
                }
                std::thread::sleep(PAUSE * fruitless);
            }
            Err(error) => return Err(error),
        }
    }
    let done_bytes = partial.bytes;
    partial.finish(metadata.sha256(), total, blob)?;
    progress(Download { file, done_bytes, total_bytes: Some(done_bytes), finished: true });
    Ok(())
}

/// Makes one request, from the end of the partial file to the end of the body.
fn attempt(
    client: &Client,
    url: &str,
    partial: &mut Partial,
    total: &mut Option<u64>,
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

    report(partial.bytes, *total);
    let mut body = response.body_mut().as_reader();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
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
        partial.append(&buffer[..read]).map_err(FetchError::Disk)?;
        report(partial.bytes, *total);
    }
}

/// The received part of a file, and its hash.
struct Partial {
    path: PathBuf,
    file: File,
    bytes: u64,
    sha256: Option<Sha256>,
}

impl Partial {
    fn open(path: PathBuf, hashed: bool) -> io::Result<Self> {
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
        let mut sha256 = hashed.then(Sha256::new);
        let bytes = match &mut sha256 {
            Some(hasher) => io::copy(&mut file, hasher)?,
            None => file.seek(SeekFrom::End(0))?,
        };
        Ok(Self { path, file, bytes, sha256 })
    }

    fn append(&mut self, chunk: &[u8]) -> io::Result<()> {
        self.file.write_all(chunk)?;
        if let Some(hasher) = &mut self.sha256 {
            hasher.update(chunk);
        }
        self.bytes += chunk.len() as u64;
        Ok(())
    }

    fn restart(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.bytes = 0;
        self.sha256 = self.sha256.as_ref().map(|_| Sha256::new());
        Ok(())
    }

    /// Checks the contents and renames the file to `blob`, or deletes it.
    fn finish(self, sha256: Option<&str>, total: Option<u64>, blob: &Path) -> Result<(), FetchError> {
        let wrong = if total.is_some_and(|total| total != self.bytes) {
            Some(format!("{} bytes were received, not {}", self.bytes, total.unwrap_or_default()))
        } else {
            let found = self.sha256.map(|hasher| format!("{:x}", hasher.finalize()));
            let differs =
                |expected: &&str| found.as_ref().is_some_and(|found| !found.eq_ignore_ascii_case(expected));
            sha256.filter(differs).map(|expected| format!("its SHA-256 is not `{expected}`"))
        };
        if let Some(wrong) = wrong {
            fs::remove_file(&self.path).map_err(FetchError::Disk)?;
            return Err(FetchError::Corrupt(wrong));
        }
        // Synced before the rename, so that a blob is complete even after a power failure.
        self.file.sync_all().and_then(|()| fs::rename(&self.path, blob)).map_err(FetchError::Disk)
    }
}
