//! Joining on CubeCL's backends: parts of one tensor that follow each other are a part of it, others are written to their
//! places, and images whose channels lie together are joined so.

use burn::backend::TensorMetadata;
use burn::backend::ops::FloatTensorOps;
use burn::tensor::Tensor;
use burn_cubecl::CubeBackend;
use burn_cubecl::ops::permute;
use burn_cubecl::tensor::CubeTensor;

use super::{JoinOps, parts, reference_join};
#[cfg(feature = "cuda")]
use crate::cube::on_cuda;
use crate::cube::rows::Rows;
use crate::cube::{addresses, buffer, cubes, dims, elem, empty, is_pixels, primitive, takes, width};
use crate::optional::Optional;

impl JoinOps for CubeBackend {
    fn join(first: CubeTensor, second: CubeTensor) -> CubeTensor {
        if let Some(joined) = neighbours(&first, &second) {
            return joined;
        }
        if !written([&first, &second]) || !(2..=4).contains(&first.rank()) {
            return reference_join::<Self>(first, second);
        }
        let sizes: Vec<usize> = first.shape().to_vec();
        let mut shape = sizes.clone();
        shape[1] += second.shape()[1];
        assert_eq!(second.rank(), first.rank(), "both parts have as many dimensions");
        let whole = empty(&first, shape, first.dtype);
        write(first, &whole, &[]);
        write(second, &whole, &[0, sizes[1]]);
        whole
    }

    fn join_channels(x: CubeTensor, y: CubeTensor) -> CubeTensor {
        if !is_pixels(&x) || !is_pixels(&y) || !written([&x, &y]) {
            return Self::float_cat(vec![x, y], 1);
        }
        let [b, c, rows, columns] = dims(&x);
        let [of_b, d, of_rows, of_columns] = dims(&y);
        assert_eq!([of_b, of_rows, of_columns], [b, rows, columns], "images of one size");
        let whole = empty(&x, [b, rows, columns, c + d], x.dtype);
        for (part, first) in [(x, 0), (y, c)] {
            write(permute(part, &[0, 2, 3, 1]), &whole, &[0, 0, 0, first]);
        }
        permute(whole, &[0, 3, 1, 2])
    }

    fn join_rows(above: Optional<Self>, x: CubeTensor, below: Optional<Self>) -> CubeTensor {
        let pixels = is_pixels(&x);
        let parts = parts::<Self>(above, x, below);
        if !pixels {
            return Self::float_cat(parts, 2);
        }
        let parts: Vec<_> = parts.into_iter().map(|part| permute(part, &[0, 2, 3, 1])).collect();
        if !written(&parts) {
            return permute(Self::float_cat(parts, 1), &[0, 3, 1, 2]);
        }
        let [b, _, columns, c] = dims(&parts[0]);
        let rows = |part: &CubeTensor| dims::<4>(part)[1];
        let whole = empty(&parts[0], [b, parts.iter().map(rows).sum(), columns, c], parts[0].dtype);
        let mut first = 0;
        for part in parts {
            let [of_b, rows, of_columns, of_c] = dims(&part);
            assert_eq!([of_b, of_columns, of_c], [b, columns, c], "rows of one image");
            write(part, &whole, &[0, first]);
            first += rows;
        }
        permute(whole, &[0, 3, 1, 2])
    }
}

/// See [`join_grid`](super::join_grid); the parts again if they are not this backend's, or the kernel does not take them.
pub(super) fn join_grid(lists: Vec<Vec<Tensor<4>>>) -> Result<Tensor<4>, Vec<Vec<Tensor<4>>>> {
    let grid: Option<Vec<Vec<_>>> =
        lists.iter().map(|list| list.iter().map(primitive).collect::<Option<Vec<_>>>()).collect();
    let grid = match grid {
        Some(grid) if written(grid.iter().flatten()) => grid,
        _ => return Err(lists),
    };
    // The kernel asks whether others hold the memory that it writes to.
    drop(lists);
    Ok(Tensor::from_primitive::<CubeBackend>(joined(grid)))
}

fn joined(grid: Vec<Vec<CubeTensor>>) -> CubeTensor {
    if let [first, rest @ ..] = &grid.iter().map(Vec::as_slice).collect::<Vec<_>>()[..]
        && let [first] = first
    {
        let follow = |above: Option<CubeTensor>, list: &&[CubeTensor]| match list {
            [next] => neighbours(&above?, next),
            _ => None,
        };
        if let Some(joined) = rest.iter().fold(Some(first.clone()), follow) {
            return joined;
        }
    }
    let [b, _, _, d] = dims(&grid[0][0]);
    let tokens: Vec<usize> = grid.iter().map(|list| dims::<4>(&list[0])[1]).collect();
    let heads = |list: &[CubeTensor]| list.iter().map(|part| dims::<4>(part)[2]).sum::<usize>();
    let all = heads(&grid[0]);
    let first = &grid[0][0];
    let whole = empty(first, [b, tokens.iter().sum(), all, d], first.dtype);
    let mut token = 0;
    for (list, n) in grid.into_iter().zip(tokens) {
        assert_eq!(heads(&list), all, "all tokens have as many heads");
        let mut head = 0;
        for part in list {
            let [of_b, of_n, h, of_d] = dims(&part);
            assert_eq!([of_b, of_n, of_d], [b, n, d], "parts beside each other have the same tokens");
            write(part, &whole, &[0, token, head]);
            head += h;
        }
        token += n;
    }
    whole
}

/// The bytes of the longest vectors that kernels read. Parts of a tensor on CUDA begin at their multiples.
#[cfg(feature = "cuda")]
const VECTOR_BYTES: usize = 32;

/// A view of `len` elements of `x` along `dim`, from `first` on; none if `x` is on no device of CUDA, or the view is not
/// aligned.
#[cfg(feature = "cuda")]
pub(super) fn narrow<const D: usize>(
    x: &Tensor<D>,
    dim: usize,
    first: usize,
    len: usize,
) -> Option<Tensor<D>> {
    let mut x = on_cuda(x)?;
    let (stride, all) = (x.meta.strides()[dim] * x.dtype.size(), x.meta.shape()[dim]);
    assert!(first + len <= all, "{len} elements from {first} on, of {all}");
    let [before, after] = [first, all - first - len].map(|elements| elements * stride);
    let aligned = [before, after].iter().all(|bytes| bytes.is_multiple_of(VECTOR_BYTES));
    (aligned && len > 0 && x.qparams.is_none()).then(|| {
        x.handle = x.handle.offset_start(before as u64).offset_end(after as u64);
        x.meta.shape[dim] = len;
        Tensor::from_primitive::<CubeBackend>(x)
    })
}

/// See [`merge_heads`](super::merge_heads); none if the tensor is on no device of CUDA, or heads lie apart.
#[cfg(feature = "cuda")]
pub(super) fn merge_heads(x: &Tensor<4>) -> Option<Tensor<3>> {
    let mut x = on_cuda(x)?;
    let [_, _, h, d] = dims(&x);
    let [of_head, of_feature] = [2, 3].map(|dim| x.meta.strides()[dim]);
    let together = (h == 1 || of_head == d) && (d == 1 || of_feature == 1);
    (together && x.qparams.is_none()).then(|| {
        x.meta.remove(3);
        x.meta.remove(2);
        x.meta.push(h * d, 1);
        Tensor::from_primitive::<CubeBackend>(x)
    })
}

/// See [`write_tokens`](super::write_tokens).
pub(super) fn write_tokens(whole: Tensor<3>, first: usize, part: Tensor<4>) -> Tensor<3> {
    let into = |part: CubeTensor| Tensor::<4>::from_primitive::<CubeBackend>(part);
    let (whole, part) = (own(whole), own(part));
    if !whole.can_mut() || !whole.is_contiguous() || !written([&whole, &part]) {
        return super::assign(Tensor::from_primitive::<CubeBackend>(whole), first, into(part));
    }
    let [b, n, c] = dims(&whole);
    let [of_b, m, h, d] = dims(&part);
    assert!(
        of_b == b && h * d == c && first + m <= n,
        "{m} tokens of {h}×{d} from {first} on, of {n} of {c}"
    );
    let mut heads = whole.clone();
    heads.meta.remove(2);
    heads.meta.push(h, d);
    heads.meta.push(d, 1);
    write(part, &heads, &[0, first]);
    Tensor::from_primitive::<CubeBackend>(whole)
}

/// See [`contiguous`](super::contiguous).
pub(super) fn contiguous<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let x = own(x);
    if x.is_contiguous() || !(2..=4).contains(&D) || !written([&x]) {
        return Tensor::from_primitive::<CubeBackend>(x);
    }
    let whole = empty(&x, x.shape(), x.dtype);
    write(x, &whole, &[]);
    Tensor::from_primitive::<CubeBackend>(whole)
}

/// # Panics
/// If `x` is on the CPU.
fn own<const D: usize>(x: Tensor<D>) -> CubeTensor {
    x.try_into_primitive::<CubeBackend>().unwrap_or_else(|_| panic!("a tensor on a device of CubeCL"))
}

/// Whether [`write`] takes all of `parts`.
fn written<'a>(parts: impl IntoIterator<Item = &'a CubeTensor> + Clone) -> bool {
    let mut types = parts.clone().into_iter().map(|part| part.dtype);
    let first = types.next();
    takes(parts) && types.all(|dtype| Some(dtype) == first)
}

/// Writes `part` into `whole`, which is contiguous, from the place `start` on; the places that it leaves out are 0.
fn write(part: CubeTensor, whole: &CubeTensor, start: &[usize]) {
    if part.meta.num_elements() == 0 {
        return;
    }
    let (mut part, last) = (part, whole.rank() - 1);
    let mut place = whole.clone();
    let first: usize = start.iter().zip(whole.meta.strides().iter()).map(|(at, stride)| at * stride).sum();
    place.meta.shape = part.meta.shape.clone();
    // Rows are long where those of both follow each other without gaps.
    for dim in (1..last).rev() {
        let (size, len) = (part.meta.shape()[dim], part.meta.shape()[last]);
        let follow = |tensor: &CubeTensor| size == 1 || tensor.meta.strides()[dim] == len;
        if part.meta.strides()[last] != 1 || !follow(&part) || !follow(&place) {
            break;
        }
        for tensor in [&mut part, &mut place] {
            tensor.meta.shape[dim] = 1;
            tensor.meta.shape[last] = size * len;
        }
    }
    let (from, to) = (Rows::new(part), Rows::new(place));
    let width = width([&from.tensor], from.divisors().chain(to.divisors()).chain([first]));
    let vectors = from.tensor.meta.num_elements() / width;
    let (count, dim) = cubes(&from.tensor.client, vectors);
    // SAFETY: units below the number of vectors read one vector of the part at its strides, and write it to its place in
    // the whole, which begins at `first` and has the part's sizes.
    unsafe {
        kernel::write::launch_unchecked(
            &from.tensor.client,
            count,
            dim,
            addresses([&from.tensor, whole]),
            width,
            buffer(&from.tensor),
            buffer(whole),
            from.layout(width),
            to.layout(width),
            first / width,
            vectors,
            from.len / width,
            elem(whole.dtype),
        );
    }
}

mod kernel {
    //! CubeCL's prelude has names that Burn has, too.

    use cubecl::prelude::*;

    use crate::cube::rows::Layout;

    #[cube(launch_unchecked, address_type = "dynamic")]
    pub(super) fn write<F: Float, N: Size>(
        part: &[Vector<F, N>],
        whole: &mut [Vector<F, N>],
        layout_of_part: Layout,
        layout_of_place: Layout,
        first: usize,
        vectors: usize,
        vectors_of_row: usize,
        #[define(F)] _type: ElemType,
    ) {
        if ABSOLUTE_POS >= vectors {
            terminate!();
        }
        let row = ABSOLUTE_POS / vectors_of_row;
        let at = ABSOLUTE_POS % vectors_of_row;
        whole[first + layout_of_place.start(row) + at] = part[layout_of_part.start(row) + at];
    }
}

/// Both as one tensor, if the tokens of `second` follow those of `first` in the same memory.
fn neighbours(first: &CubeTensor, second: &CubeTensor) -> Option<CubeTensor> {
    let [before, after] = [first, second].map(|part| part.handle.offset_start.unwrap_or(0));
    let (shape, strides) = (first.meta.shape(), first.meta.strides());
    let fits = first.handle.memory.descriptor().id == second.handle.memory.descriptor().id
        && first.dtype == second.dtype
        && first.rank() == second.rank()
        && (0..first.rank()).all(|dim| dim == 1 || shape[dim] == second.meta.shape()[dim])
        // The stride of a single image has no meaning, and depends on the way to the view.
        && (0..first.rank()).all(|dim| strides[dim] == second.meta.strides()[dim] || dim != 1 && shape[dim] == 1)
        && after == before + (shape[1] * strides[1] * first.dtype.size()) as u64;
    fits.then(|| {
        let mut joined = first.clone();
        joined.handle.offset_end = second.handle.offset_end;
        joined.meta.shape[1] += second.meta.shape[1];
        joined
    })
}
