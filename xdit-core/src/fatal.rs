//! Ends that no `Result` reports: memory that the system refuses, and pages of a mapped file that cannot be read.
//!
//! Both end a program without a word of its own: the first by an abort, the second by a signal. Here, a program is told
//! and can say one sentence. Nothing in this library uses either; a program decides for itself.
#![expect(unsafe_code, reason = "an allocator and a signal handler have no safe interface")]

use std::alloc::{GlobalAlloc, Layout, System};

use crate::error::Error;

/// The system's allocator, which calls a function in place of the abort if the system refuses memory.
///
/// ```
/// use xdit_core::fatal::Allocator;
///
/// #[global_allocator]
/// static MEMORY: Allocator = Allocator::new(|bytes| {
///     eprintln!("no memory for {bytes} bytes");
///     std::process::exit(1)
/// });
/// ```
pub struct Allocator {
    refused: fn(usize) -> !,
}

impl Allocator {
    /// `refused` is called with the size of the allocation in bytes, on any thread. It should need no memory itself: it is
    /// called again then.
    pub const fn new(refused: fn(usize) -> !) -> Self {
        Self { refused }
    }

    fn checked(&self, memory: *mut u8, bytes: usize) -> *mut u8 {
        if memory.is_null() {
            (self.refused)(bytes);
        }
        memory
    }
}

// SAFETY: all calls are passed on to the system's allocator, whose results are returned as they are.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract of this function, which is the same.
        self.checked(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        self.checked(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        // SAFETY: as above.
        self.checked(unsafe { System.realloc(memory, layout, bytes) }, bytes)
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

/// Calls `then`, on a thread of its own, when a page of a mapped file cannot be read: the file was cut by another program, or
/// its disk failed. `then` should end the program within [`PATIENCE_S`] seconds; the thread that needs the page waits.
///
/// Does nothing on other systems than Linux, where the signal ends the program.
///
/// # Errors
/// If the system has neither a pipe nor a thread for it.
pub fn on_lost_page(then: impl FnOnce(Error) + Send + 'static) -> std::io::Result<()> {
    #[cfg(target_os = "linux")]
    return linux::on_lost_page(then);
    #[cfg(not(target_os = "linux"))]
    {
        drop(then);
        Ok(())
    }
}

/// The seconds that a program has to end after it was told that a page is lost; it is ended with exit code 1 then.
pub const PATIENCE_S: u32 = 10;

#[cfg(target_os = "linux")]
mod linux {
    use std::io::{self, Read};
    use std::os::fd::IntoRawFd;
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicI32, Ordering};
    use std::{fs, mem, ptr, thread};

    use super::{Error, PATIENCE_S};

    /// The writing end of the pipe that wakes the thread.
    static WAKE: AtomicI32 = AtomicI32::new(-1);

    pub fn on_lost_page(then: impl FnOnce(Error) + Send + 'static) -> io::Result<()> {
        let (mut woken, wake) = io::pipe()?;
        thread::Builder::new().name("lost pages".to_owned()).spawn(move || {
            if woken.read_exact(&mut [0]).is_ok() {
                then(lost_page());
            }
        })?;
        WAKE.store(wake.into_raw_fd(), Ordering::Relaxed);
        // SAFETY: the struct is valid when zeroed, the handler has the type that the flags ask for, and it calls only
        // functions that a handler may call.
        let end = unsafe {
            let mut action: libc::sigaction = mem::zeroed();
            action.sa_sigaction = handle as *const () as usize;
            action.sa_flags = libc::SA_ONSTACK | libc::SA_RESTART;
            libc::sigemptyset(&raw mut action.sa_mask);
            libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut())
        };
        if end == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Wakes the thread, and does not return: the same access would fail again.
    extern "C" fn handle(_: libc::c_int) {
        let byte = [0u8];
        // SAFETY: all three functions may be called in a handler, and the buffer has the length that is given.
        unsafe {
            libc::write(WAKE.load(Ordering::Relaxed), byte.as_ptr().cast(), byte.len());
            let mut left = PATIENCE_S;
            while left > 0 {
                left = libc::sleep(left);
            }
            libc::_exit(1)
        }
    }

    fn lost_page() -> Error {
        match cut_file() {
            Some(file) => Error::failure(format!("`{}` became shorter while it was in use", file.display()))
                .hint("download the file again, and leave the files of a model alone during a run"),
            None => Error::failure("a page of a mapped file cannot be read")
                .hint("check the disk that holds the model"),
        }
    }

    /// A file of this process's mappings that has become shorter than its mapping.
    fn cut_file() -> Option<PathBuf> {
        const PAGE: u64 = 4096;
        let maps = fs::read_to_string("/proc/self/maps").ok()?;
        maps.lines().find_map(|line| {
            // The range of addresses, permissions, offset in the file, device, inode, and the path.
            let mut fields = line.splitn(6, ' ');
            let (start, end) = fields.next()?.split_once('-')?;
            let number = |text| u64::from_str_radix(text, 16).ok();
            let offset = number(fields.nth(1)?)?;
            let path = PathBuf::from(fields.nth(2)?.trim_start());
            let mapped_to = offset + (number(end)? - number(start)?);
            let found = fs::metadata(&path).ok().filter(fs::Metadata::is_file)?;
            // The last page of a mapping may be in the file only in part.
            (found.len() + PAGE <= mapped_to).then_some(path)
        })
    }
}
