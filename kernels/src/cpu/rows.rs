//! Tensors as rows of features, at any positions in memory.

use std::marker::PhantomData;
use std::mem::MaybeUninit;

use burn::backend::TensorMetadata;
use burn::tensor::{Bytes, DType, bf16, f16};
use burn_flex::{FlexTensor, Layout};
use rayon::prelude::*;

use super::element::{Element, Narrow, Widen};
use super::lanes::Level;

/// The number of elements of a task: few enough for the first-level cache, and enough to outweigh its overhead.
const TASK_LEN: usize = 8192;

/// A tensor whose rows (the last dimension) are contiguous, with any distance between them.
pub(crate) struct TensorRows<E = f32> {
    tensor: FlexTensor,
    /// The sizes and strides of the leading dimensions; dimensions that are contiguous to each other are merged.
    leading: Vec<(usize, isize)>,
    len: usize,
    of: PhantomData<E>,
}

impl<E: Element> TensorRows<E> {
    /// The rows of `tensor`, which is copied only if a row is not contiguous.
    ///
    /// # Panics
    /// If the elements of `tensor` are not of type `E`.
    pub(crate) fn new(mut tensor: FlexTensor) -> Self {
        assert_eq!(tensor.dtype(), E::dtype());
        let last = tensor.rank() - 1;
        if tensor.layout().strides()[last] != 1 && tensor.layout().shape()[last] > 1 {
            tensor = tensor.to_contiguous();
        }
        let (shape, strides) = (tensor.layout().shape(), tensor.layout().strides());
        let mut leading: Vec<(usize, isize)> = Vec::with_capacity(last);
        for dim in (0..last).filter(|&dim| shape[dim] != 1) {
            match leading.last_mut() {
                Some((size, stride)) if *stride == strides[dim] * shape[dim] as isize => {
                    (*size, *stride) = (*size * shape[dim], strides[dim]);
                }
                _ => leading.push((shape[dim], strides[dim])),
            }
        }
        let len = shape[last];
        Self { tensor, leading, len, of: PhantomData }
    }

    /// The number of elements of a row.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Makes the rows contiguous to each other.
    pub(crate) fn into_contiguous(mut self) -> Self {
        self.make_contiguous();
        self
    }

    /// Copies the rows unless they are contiguous to each other.
    pub(crate) fn make_contiguous(&mut self) {
        let count = self.count();
        self.tensor = self.tensor.to_contiguous();
        self.leading = vec![(count, self.len as isize)];
    }

    /// The memory from the first row on.
    pub(crate) fn memory(&self) -> &[E] {
        &self.tensor.storage()[self.offset(0)..]
    }

    /// The number of rows.
    pub(crate) fn count(&self) -> usize {
        self.leading.iter().map(|&(size, _)| size).product()
    }

    /// The distance between rows, if it is the same for all.
    pub(crate) fn stride(&self) -> Option<isize> {
        match self.leading[..] {
            [] => Some(self.len as isize),
            [(_, stride)] => Some(stride),
            _ => None,
        }
    }

    /// The first element of row 0; the other rows can be reached from this pointer.
    ///
    /// # Panics
    /// If the first or the last row is not within the memory of the tensor.
    pub(crate) fn as_ptr(&self) -> *const E {
        let (first, last) = (self.offset(0), self.offset(self.count() - 1));
        let storage = self.tensor.storage::<E>();
        assert!(first.max(last) + self.len <= storage.len());
        storage.as_ptr().wrapping_add(first)
    }

    /// Row `index`, in the order of the leading dimensions.
    #[inline]
    pub(crate) fn row(&self, index: usize) -> &[E] {
        &self.tensor.storage()[self.offset(index)..][..self.len]
    }

    fn offset(&self, mut index: usize) -> usize {
        let mut offset = self.tensor.layout().start_offset() as isize;
        for (dim, &(size, stride)) in self.leading.iter().enumerate().rev() {
            let at = if dim == 0 { index } else { index % size };
            index /= size.max(1);
            offset += at as isize * stride;
        }
        offset as usize
    }

    /// Copies rows to `to`, from row `first` on, as many as fit.
    fn copy_to(&self, first: usize, to: &mut [MaybeUninit<E>]) {
        // Adjacent rows are copied together.
        let joined = if self.stride() == Some(self.len as isize) { to.len() / self.len } else { 1 };
        for (i, to) in to.chunks_exact_mut(joined * self.len).enumerate() {
            let start = self.offset(first + i * joined);
            to.write_copy_of_slice(&self.tensor.storage()[start..start + to.len()]);
        }
    }

    /// Whether the memory is not shared, so that it can be changed in place.
    fn is_exclusive(&self) -> bool {
        self.tensor.is_unique() && self.tensor.is_contiguous()
    }
}

/// A `[b, 1, c]` tensor for a `[b, n, c]` one; if `b` is 1, it applies to all images.
pub(crate) struct PerImage {
    rows: TensorRows,
    shared: bool,
}

impl PerImage {
    pub(crate) fn new(tensor: FlexTensor, [b, _, c]: [usize; 3]) -> Self {
        let dims = super::dims::<3>(&tensor);
        assert!(dims == [b, 1, c] || dims == [1, 1, c], "{dims:?} instead of [{b}, 1, {c}]");
        Self { rows: TensorRows::new(tensor), shared: dims[0] == 1 }
    }

    pub(crate) fn row(&self, image: usize) -> &[f32] {
        self.rows.row(if self.shared { 0 } else { image })
    }
}

/// Applies `f` to groups of whole rows of `x`, in parallel. Its arguments are the index of the first row and the
/// contiguous rows, which it changes in place.
///
/// Works in the memory of `x` if it is not shared, and otherwise in a copy that is made group by group. Rows of 16 bits
/// are widened and rounded group by group, within the first-level cache.
pub(crate) fn map_rows(x: FlexTensor, f: impl Fn(usize, &mut [f32]) + Sync) -> FlexTensor {
    match x.dtype() {
        DType::BF16 => map_16_bit_rows::<bf16>(x, f),
        DType::F16 => map_16_bit_rows::<f16>(x, f),
        _ => map_f32_rows(x, f),
    }
}

/// [`map_rows`] of 16-bit numbers.
fn map_16_bit_rows<E: Element>(x: FlexTensor, f: impl Fn(usize, &mut [f32]) + Sync) -> FlexTensor {
    let (shape, level) = (x.shape(), Level::detect());
    let mut rows = TensorRows::<E>::new(x);
    let len = shape.num_elements();
    if len == 0 {
        return rows.tensor;
    }
    let group = (TASK_LEN / rows.len).max(1);
    if rows.is_exclusive() {
        let start = rows.tensor.layout().start_offset();
        let data = rows.tensor.try_storage_mut::<E>().expect("checked by is_exclusive");
        for_each_chunk(&mut data[start..start + len], group * rows.len, |i, chunk| {
            let mut wide = vec![0.0; chunk.len()];
            level.run(Widen { from: chunk, to: &mut wide });
            f(i * group, &mut wide);
            level.run(Narrow { from: &wide, to: chunk });
        });
        return rows.tensor;
    }
    let mut data = vec![E::zeroed(); len];
    for_each_chunk(&mut data, group * rows.len, |i, chunk| {
        let mut wide = vec![0.0; chunk.len()];
        for (row, to) in (i * group..).zip(wide.chunks_exact_mut(rows.len)) {
            level.run(Widen { from: rows.row(row), to });
        }
        f(i * group, &mut wide);
        level.run(Narrow { from: &wide, to: chunk });
    });
    FlexTensor::new(Bytes::from_elems(data), Layout::contiguous(shape), E::dtype())
}

/// [`map_rows`] of f32.
fn map_f32_rows(x: FlexTensor, f: impl Fn(usize, &mut [f32]) + Sync) -> FlexTensor {
    let shape = x.shape();
    let mut rows = TensorRows::new(x);
    let len = shape.num_elements();
    if len == 0 {
        return rows.tensor;
    }
    let group = (TASK_LEN / rows.len).max(1);
    if rows.is_exclusive() {
        let start = rows.tensor.layout().start_offset();
        let data = rows.tensor.try_storage_mut::<f32>().expect("checked by is_exclusive");
        for_each_chunk(&mut data[start..start + len], group * rows.len, |i, chunk| f(i * group, chunk));
        return rows.tensor;
    }
    let mut data = Vec::with_capacity(len);
    for_each_chunk(&mut data.spare_capacity_mut()[..len], group * rows.len, |i, chunk| {
        rows.copy_to(i * group, chunk);
        // SAFETY: `chunk` consists of whole rows, all of which were just written.
        f(i * group, unsafe { chunk.assume_init_mut() });
    });
    // SAFETY: the chunks cover the first `len` elements, all of which were written.
    unsafe { data.set_len(len) };
    super::tensor(data, shape)
}

/// Calls `f` with the index and the elements of each chunk, in parallel if there is enough work.
fn for_each_chunk<T: Send>(data: &mut [T], chunk_len: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    if data.len() <= 2 * TASK_LEN {
        data.chunks_mut(chunk_len).enumerate().for_each(|(i, chunk)| f(i, chunk));
    } else {
        data.par_chunks_mut(chunk_len).enumerate().for_each(|(i, chunk)| f(i, chunk));
    }
}
