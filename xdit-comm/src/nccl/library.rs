//! NCCL's functions, from `nccl.h`, found when the program runs.

use std::ffi::{CStr, OsStr, c_char, c_int, c_void};
use std::sync::Arc;

use libloading::Library;

/// Names of the library's file.
pub const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];

/// The oldest version in use, which is the first that splits communicators.
pub const OLDEST: i32 = 21_800;

pub(super) type Handle = *mut c_void;
type Status = c_int;

/// What ranks need to meet.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct UniqueId(pub(super) [u8; UniqueId::BYTES]);

impl UniqueId {
    /// Its size.
    pub const BYTES: usize = 128;

    /// The identity in the first [`BYTES`](Self::BYTES) of `bytes`, as another rank has sent it.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The bytes to send to the other ranks.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

type Peer = unsafe extern "C" fn(*mut c_void, usize, c_int, c_int, Handle, *mut c_void) -> Status;
type AllReduce =
    unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, Handle, *mut c_void) -> Status;

/// The library.
pub struct Nccl {
    pub(super) unique_id: unsafe extern "C" fn(*mut UniqueId) -> Status,
    pub(super) join: unsafe extern "C" fn(*mut Handle, c_int, UniqueId, c_int) -> Status,
    pub(super) split: unsafe extern "C" fn(Handle, c_int, c_int, *mut Handle, *mut c_void) -> Status,
    pub(super) begin: unsafe extern "C" fn() -> Status,
    pub(super) end: unsafe extern "C" fn() -> Status,
    pub(super) send: Peer,
    pub(super) receive: Peer,
    pub(super) all_reduce: AllReduce,
    pub(super) destroy: unsafe extern "C" fn(Handle) -> Status,
    pub(super) abort: unsafe extern "C" fn(Handle) -> Status,
    pub(super) state: unsafe extern "C" fn(Handle, *mut Status) -> Status,
    text: unsafe extern "C" fn(Status) -> *const c_char,
    version: c_int,
    _library: Library,
}

impl Nccl {
    /// Opens `file`, which may be a name for the system's loader.
    ///
    /// # Errors
    /// If it cannot be opened, lacks a function, or is older than 2.18.
    pub fn open(file: impl AsRef<OsStr>) -> Result<Arc<Self>, String> {
        let text = |error: libloading::Error| error.to_string();
        // SAFETY: opening NCCL runs its start-up code, which asks nothing of the program.
        let library = unsafe { Library::new(file.as_ref()) }.map_err(text)?;
        macro_rules! function {
            ($name:literal) => {
                // SAFETY: the type is that of the function in `nccl.h`.
                unsafe {
                    *library
                        .get(concat!($name, "\0"))
                        .map_err(|_| concat!("it has no function `", $name, "`"))?
                }
            };
        }
        let ask: unsafe extern "C" fn(*mut c_int) -> Status = function!("ncclGetVersion");
        let mut version = 0;
        // SAFETY: the library writes its version to a number of ours.
        let asked = unsafe { ask(&raw mut version) };
        if asked != 0 || version < OLDEST {
            return Err(format!("version {} is older than {}", shown(version), shown(OLDEST)));
        }
        Ok(Arc::new(Self {
            unique_id: function!("ncclGetUniqueId"),
            join: function!("ncclCommInitRank"),
            split: function!("ncclCommSplit"),
            begin: function!("ncclGroupStart"),
            end: function!("ncclGroupEnd"),
            send: function!("ncclSend"),
            receive: function!("ncclRecv"),
            all_reduce: function!("ncclAllReduce"),
            destroy: function!("ncclCommDestroy"),
            abort: function!("ncclCommAbort"),
            state: function!("ncclCommGetAsyncError"),
            text: function!("ncclGetErrorString"),
            version,
            _library: library,
        }))
    }

    /// The version, such as `2.28.3`.
    pub fn version(&self) -> String {
        shown(self.version)
    }

    /// A new identity for ranks that are to meet: one of them makes it, and sends it to the others.
    ///
    /// # Errors
    /// If the library fails.
    pub fn unique_id(&self) -> Result<UniqueId, String> {
        let mut id = UniqueId([0; UniqueId::BYTES]);
        // SAFETY: the library fills an identity of ours.
        self.check("ncclGetUniqueId", unsafe { (self.unique_id)(&raw mut id) })?;
        Ok(id)
    }

    pub(super) fn check(&self, function: &str, status: Status) -> Result<(), String> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: the library returns a text of its own for every number.
        let text = unsafe { CStr::from_ptr((self.text)(status)) };
        Err(format!("`{function}` of NCCL {} failed: {}", self.version(), text.to_string_lossy()))
    }
}

impl std::fmt::Debug for Nccl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Nccl({})", self.version())
    }
}

/// The three parts of a version, which NCCL counts as `major * 10000 + minor * 100 + patch`.
fn shown(version: c_int) -> String {
    format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
}
