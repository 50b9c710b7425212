//! The payload of transfers: typed, reference-counted bytes.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use bytemuck::Pod;
use bytes::Bytes;
use half::{bf16, f16};

/// The type of the elements in a [`Buffer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE 754 single precision.
    F32,
    /// The upper half of an `f32`.
    Bf16,
    /// IEEE 754 half precision.
    F16,
    /// Signed 32-bit integer.
    I32,
    /// Unsigned byte; also carries data of any other type.
    U8,
}

impl DType {
    /// Bytes of one element.
    pub const fn size_bytes(self) -> usize {
        match self {
            Self::F32 | Self::I32 => 4,
            Self::Bf16 | Self::F16 => 2,
            Self::U8 => 1,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::I32 => "i32",
            Self::U8 => "u8",
        })
    }
}

mod sealed {
    pub trait Sealed {}
}

/// A Rust type with a [`DType`].
pub trait Element: sealed::Sealed + Pod + Send + Sync {
    /// The corresponding type on the wire.
    const DTYPE: DType;
}

macro_rules! element {
    ($($type:ty => $dtype:ident),*) => {$(
        impl sealed::Sealed for $type {}
        impl Element for $type {
            const DTYPE: DType = DType::$dtype;
        }
    )*};
}
element!(f32 => F32, bf16 => Bf16, f16 => F16, i32 => I32, u8 => U8);

/// Element type and count, on which the two ends of a transfer must agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BufferSpec {
    /// Type of the elements.
    pub dtype: DType,
    /// The number of elements, not of bytes.
    pub len: usize,
}

impl BufferSpec {
    /// The spec of `len` elements of `dtype`.
    pub const fn new(dtype: DType, len: usize) -> Self {
        Self { dtype, len }
    }

    /// Bytes on the wire.
    pub const fn size_bytes(self) -> usize {
        self.len * self.dtype.size_bytes()
    }
}

impl fmt::Display for BufferSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} × {}", self.len, self.dtype)
    }
}

/// Immutable elements with shared ownership; clones and slices copy nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct Buffer {
    dtype: DType,
    bytes: Bytes,
}

impl Buffer {
    /// Interprets `bytes` as elements of `dtype` in native byte order, at any alignment.
    ///
    /// # Panics
    /// If the length is not a whole number of elements.
    pub fn from_bytes(dtype: DType, bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        assert_eq!(
            bytes.len() % dtype.size_bytes(),
            0,
            "{} bytes are not whole elements of {dtype}",
            bytes.len()
        );
        Self { dtype, bytes }
    }

    /// Takes over a vector without copying it; the bytes stay aligned for `E`.
    pub fn from_vec<E: Element>(elements: Vec<E>) -> Self {
        struct Owner<E>(Vec<E>);
        impl<E: Element> AsRef<[u8]> for Owner<E> {
            fn as_ref(&self) -> &[u8] {
                bytemuck::cast_slice(&self.0)
            }
        }
        Self { dtype: E::DTYPE, bytes: Bytes::from_owner(Owner(elements)) }
    }

    /// A buffer without elements, of type `dtype`.
    pub const fn empty(dtype: DType) -> Self {
        Self { dtype, bytes: Bytes::new() }
    }

    /// The elements in `range`, sharing this buffer's memory.
    ///
    /// # Panics
    /// If `range` reaches beyond the end.
    pub fn slice(&self, range: Range<usize>) -> Self {
        let size = self.dtype.size_bytes();
        Self { dtype: self.dtype, bytes: self.bytes.slice(range.start * size..range.end * size) }
    }

    /// Type of the elements.
    pub const fn dtype(&self) -> DType {
        self.dtype
    }

    /// The number of elements.
    pub const fn len(&self) -> usize {
        self.bytes.len() / self.dtype.size_bytes()
    }

    /// Whether there are no elements.
    pub const fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The type and number of the elements.
    pub const fn spec(&self) -> BufferSpec {
        BufferSpec::new(self.dtype, self.len())
    }

    /// The elements; borrowed unless the bytes happen to be misaligned for `E`.
    ///
    /// # Panics
    /// If the buffer holds another type.
    pub fn elements<E: Element>(&self) -> Cow<'_, [E]> {
        assert_eq!(self.dtype, E::DTYPE, "a buffer of {} read as {}", self.dtype, E::DTYPE);
        match bytemuck::try_cast_slice(&self.bytes) {
            Ok(elements) => Cow::Borrowed(elements),
            Err(_) => Cow::Owned(bytemuck::pod_collect_to_vec(&self.bytes)),
        }
    }

    /// The bytes, for sharing.
    pub const fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Converts the buffer into its bytes.
    pub fn into_bytes(self) -> Bytes {
        self.bytes
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({})", self.spec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_is_taken_over_in_place() {
        let elements = vec![1.0f32, 2.0, 3.0];
        let address = elements.as_ptr().cast::<u8>();
        let buffer = Buffer::from_vec(elements);
        assert_eq!(buffer.bytes().as_ptr(), address);
        assert_eq!(buffer.slice(1..3).bytes().as_ptr(), address.wrapping_add(4));
        assert!(matches!(buffer.elements::<f32>(), Cow::Borrowed([1.0, 2.0, 3.0])));
    }

    #[test]
    fn misaligned_bytes_are_read_all_the_same() {
        let mut bytes = vec![0u8];
        bytes.extend_from_slice(bytemuck::bytes_of(&[1.5f32, -2.0]));
        let buffer = Buffer::from_bytes(DType::F32, Bytes::from(bytes).slice(1..));
        assert_eq!(buffer.elements::<f32>(), [1.5, -2.0].as_slice());
    }

    #[test]
    fn slices_make_up_the_whole() {
        let whole = Buffer::from_vec((0..7).collect::<Vec<i32>>());
        let parts = [whole.slice(0..3), whole.slice(3..3), whole.slice(3..7)];
        assert_eq!(
            parts.map(|part| part.elements::<i32>().into_owned()).concat(),
            whole.elements::<i32>().as_ref()
        );
    }

    #[test]
    #[should_panic(expected = "5 bytes are not whole elements of bf16")]
    fn half_an_element_is_refused() {
        Buffer::from_bytes(DType::Bf16, vec![0u8; 5]);
    }

    #[test]
    #[should_panic(expected = "a buffer of i32 read as f32")]
    fn another_type_is_refused() {
        Buffer::from_vec(vec![1i32]).elements::<f32>();
    }
}
