//! Memory for results and intermediate values.

/// The size in bytes from which on a vector requests huge pages.
const HUGE: usize = 4 << 20;

/// A vector of zeros, in huge pages if it is large.
pub(crate) fn zeros(len: usize) -> Vec<f32> {
    let mut data = vec![0.0f32; len];
    request_huge_pages(data.as_mut_ptr(), len);
    data
}

/// An empty vector with room for `len` elements, in huge pages if it is large.
#[cfg(target_arch = "x86_64")]
pub(crate) fn room<T>(len: usize) -> Vec<T> {
    let mut data = Vec::with_capacity(len);
    request_huge_pages(data.as_mut_ptr(), len);
    data
}

/// Requests huge pages from the kernel if there are many elements: faulting in an image in pages of 4 KiB takes up to
/// half as long as convolving it.
fn request_huge_pages<T>(data: *mut T, len: usize) {
    #[cfg(target_os = "linux")]
    {
        const PAGE: usize = 4096;
        let bytes = len * size_of::<T>();
        let start = data.cast::<u8>();
        let skip = start.align_offset(PAGE);
        if bytes >= HUGE && skip < bytes {
            // SAFETY: the callers own that many elements. The advice affects how their pages are mapped, not their
            // contents, and ignoring it is harmless.
            unsafe {
                let whole_pages = (bytes - skip) / PAGE * PAGE;
                libc::madvise(start.add(skip).cast(), whole_pages, libc::MADV_HUGEPAGE);
            }
        }
    }
}

/// Zeroed memory that begins on a cache line.
pub(crate) struct Scratch {
    data: Vec<f32>,
    start: usize,
    len: usize,
}

impl Scratch {
    pub(crate) fn new(len: usize) -> Self {
        let data = zeros(len + 15);
        // At most 15 elements are skipped, because `data` is aligned to its elements.
        let start = data.as_ptr().align_offset(64).min(15);
        Self { data, start, len }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [f32] {
        &mut self.data[self.start..][..self.len]
    }

    pub(crate) fn as_slice(&self) -> &[f32] {
        &self.data[self.start..][..self.len]
    }
}
