//! Tensors as rows of features that lie together, wherever the rows lie.

use burn::backend::TensorMetadata;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::{dims, wide};

/// A tensor whose last dimension is contiguous, with the others merged as far as its strides allow.
pub(crate) struct Rows {
    pub(crate) tensor: CubeTensor,
    /// Sizes and strides of at most three dimensions of rows, outermost first.
    outer: Vec<[usize; 2]>,
    /// Features of a row.
    pub(crate) len: usize,
}

impl Rows {
    /// The rows of `tensor`, which is copied if its features lie apart or its rows are too scattered.
    pub(crate) fn new(tensor: CubeTensor) -> Self {
        let mut rows = Self::of(together(tensor));
        if rows.outer.len() > 3 {
            rows = Self::of(into_contiguous(rows.tensor));
        }
        rows
    }

    /// All elements as one row if they are contiguous, else as [`new`](Self::new).
    pub(crate) fn flat(tensor: CubeTensor) -> Self {
        if tensor.is_contiguous() {
            let len = tensor.meta.num_elements();
            Self { tensor, outer: vec![], len }
        } else {
            Self::new(tensor)
        }
    }

    fn of(tensor: CubeTensor) -> Self {
        let sizes = tensor.meta.shape().iter().copied();
        let mut dims: Vec<_> = sizes.zip(tensor.meta.strides().iter().copied()).collect();
        let (len, _) = dims.pop().expect("a dimension of features");
        let mut outer: Vec<[usize; 2]> = Vec::new();
        for (size, stride) in dims.into_iter().filter(|&(size, _)| size != 1) {
            match outer.last_mut() {
                Some([above, of_above]) if *of_above == stride * size => {
                    (*above, *of_above) = (*above * size, stride);
                }
                _ => outer.push([size, stride]),
            }
        }
        Self { tensor, outer, len }
    }

    /// The number of rows.
    pub(crate) fn count(&self) -> usize {
        self.outer.iter().map(|[size, _]| size).product()
    }

    /// Numbers that the width of vectors must divide.
    pub(crate) fn divisors(&self) -> impl Iterator<Item = usize> {
        self.outer.iter().map(|&[_, stride]| stride).chain([self.len])
    }

    /// Where rows begin, as an argument of a kernel that reads vectors of `width`.
    pub(crate) fn layout(&self, width: usize) -> LayoutLaunch {
        let mut dims = [[1, 0]; 3];
        dims[3 - self.outer.len()..].copy_from_slice(&self.outer);
        let [[_, of_outer], [middle, of_middle], [inner, of_inner]] = dims;
        LayoutLaunch::new(
            middle,
            inner,
            of_outer / width,
            of_middle / width,
            of_inner / width,
            self.outer.len(),
        )
    }
}

/// One row of features for each image, or one for all.
pub(crate) struct PerImage {
    pub(crate) tensor: CubeTensor,
    /// The distance between the rows of two images, 0 if they share one.
    pub(crate) of_image: usize,
}

impl PerImage {
    /// # Shapes
    /// `tensor`: `[b, 1, c]`, or `[1, 1, c]` for all images, where `sizes` are `[b, n, c]`.
    ///
    /// # Panics
    /// If `tensor` has another shape.
    pub(crate) fn new(tensor: CubeTensor, [b, _, c]: [usize; 3]) -> Self {
        let dims = dims(&tensor);
        assert!(dims == [b, 1, c] || dims == [1, 1, c], "{dims:?} instead of [{b}, 1, {c}]");
        let tensor = together(tensor);
        let of_image = if dims[0] == 1 { 0 } else { tensor.meta.strides()[0] };
        Self { tensor, of_image }
    }

    /// One row for all images.
    ///
    /// # Panics
    /// If `tensor` is not `[c]`.
    pub(crate) fn shared(tensor: CubeTensor, c: usize) -> Self {
        assert_eq!(dims(&tensor), [c], "a parameter for each feature");
        Self { tensor: together(tensor), of_image: 0 }
    }

    /// The same in f32.
    pub(crate) fn wide(self) -> Self {
        let Self { tensor, of_image } = self;
        let rows = tensor.shape()[0];
        let tensor = into_contiguous(wide(tensor));
        let of_image = if of_image == 0 { 0 } else { tensor.meta.num_elements() / rows };
        Self { tensor, of_image }
    }
}

/// `tensor` with contiguous features.
fn together(tensor: CubeTensor) -> CubeTensor {
    let last = tensor.rank() - 1;
    if tensor.meta.strides()[last] == 1 || tensor.meta.shape()[last] == 1 {
        tensor
    } else {
        into_contiguous(tensor)
    }
}

/// Where the rows of a tensor begin. Strides are in vectors.
#[derive(CubeType, CubeLaunch, Clone)]
pub(crate) struct Layout {
    middle: usize,
    inner: usize,
    of_outer: usize,
    of_middle: usize,
    of_inner: usize,
    /// Dimensions of rows: kernels divide only for those that there are.
    #[cube(comptime)]
    dims: usize,
}

#[cube]
impl Layout {
    /// The vector at which `row` begins.
    pub(crate) fn start(&self, row: usize) -> usize {
        let dims = comptime![self.dims];
        if comptime![dims == 0] {
            0usize.runtime()
        } else if comptime![dims == 1] {
            row * self.of_inner
        } else if comptime![dims == 2] {
            row / self.inner * self.of_middle + row % self.inner * self.of_inner
        } else {
            let above = row / self.inner;
            above / self.middle * self.of_outer
                + above % self.middle * self.of_middle
                + row % self.inner * self.of_inner
        }
    }
}
