//! Tensors as rows of features, wherever the rows lie.

use std::marker::PhantomData;
use std::mem::MaybeUninit;

use burn::backend::TensorMetadata;
use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::element::Element;

/// How many elements a task takes: few enough for the first-level cache, enough to pay for the task.
const TASK_LEN: usize = 8192;

/// A tensor whose rows (the last dimension) are slices, though they may lie apart.
pub(crate) struct TensorRows<E = f32> {
    tensor: FlexTensor,
    /// Sizes and strides of the leading dimensions, with those merged that lie as one.
    leading: Vec<(usize, isize)>,
    len: usize,
    of: PhantomData<E>,
}

impl<E: Element> TensorRows<E> {
    /// The rows of `tensor`; it is copied only if a row is not a slice.
    ///
    /// # Panics
    /// If `tensor` is not of `E`.
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

    /// How many elements a row has.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The same rows, one after the other.
    pub(crate) fn into_contiguous(mut self) -> Self {
        self.make_contiguous();
        self
    }

    /// Copies the rows unless they lie one after the other.
    pub(crate) fn make_contiguous(&mut self) {
        let count = self.count();
        self.tensor = self.tensor.to_contiguous();
        self.leading = vec![(count, self.len as isize)];
    }

    /// The memory from the first row on.
    pub(crate) fn memory(&self) -> &[E] {
        &self.tensor.storage()[self.offset(0)..]
    }

    /// How many rows there are.
    pub(crate) fn count(&self) -> usize {
        self.leading.iter().map(|&(size, _)| size).product()
    }

    /// The distance from row to row, if it is the same everywhere.
    pub(crate) fn stride(&self) -> Option<isize> {
        match self.leading[..] {
            [] => Some(self.len as isize),
            [(_, stride)] => Some(stride),
            _ => None,
        }
    }

    /// The first element of row 0; from here the other rows can be reached, too.
    ///
    /// # Panics
    /// If the first or the last row is not within the memory of the tensor.
    pub(crate) fn as_ptr(&self) -> *const E {
        let (first, last) = (self.offset(0), self.offset(self.count() - 1));
        let storage = self.tensor.storage::<E>();
        assert!(first.max(last) + self.len <= storage.len());
        storage.as_ptr().wrapping_add(first)
    }

    /// Row number `index`, counting in the order of the leading dimensions.
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

    /// Writes rows from number `first` on to `to`, as many as it has room for.
    fn copy_to(&self, first: usize, to: &mut [MaybeUninit<E>]) {
        // TensorRows that follow each other are one.
        let joined = if self.stride() == Some(self.len as isize) { to.len() / self.len } else { 1 };
        for (i, to) in to.chunks_exact_mut(joined * self.len).enumerate() {
            let start = self.offset(first + i * joined);
            to.write_copy_of_slice(&self.tensor.storage()[start..start + to.len()]);
        }
    }

    /// Whether the memory can be written without anyone noticing.
    fn is_exclusive(&self) -> bool {
        self.tensor.is_unique() && self.tensor.is_contiguous()
    }
}

/// A `[b, 1, c]` tensor that goes with a `[b, n, c]` one; `b` may be 1 for all.
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

/// `f` applied to groups of whole rows of `x`, in parallel. It is given the number of the first row and the rows
/// one after the other, which it changes in place.
///
/// Works in `x`'s own memory if nobody else holds it, else in a copy made group by group.
pub(crate) fn map_rows(x: FlexTensor, f: impl Fn(usize, &mut [f32]) + Sync) -> FlexTensor {
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
        // SAFETY: `chunk` consists of whole rows, and each was just written.
        f(i * group, unsafe { chunk.assume_init_mut() });
    });
    // SAFETY: the chunks make up the first `len` elements, and each was written.
    unsafe { data.set_len(len) };
    super::tensor(data, shape)
}

/// Calls `f` with the number of each chunk and the chunk, in parallel if there is enough to do.
fn for_each_chunk<T: Send>(data: &mut [T], chunk_len: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    if data.len() <= 2 * TASK_LEN {
        data.chunks_mut(chunk_len).enumerate().for_each(|(i, chunk)| f(i, chunk));
    } else {
        data.par_chunks_mut(chunk_len).enumerate().for_each(|(i, chunk)| f(i, chunk));
    }
}
