//! Decodes a picture on several ranks, some rows each.

use burn::tensor::{DType, Device, Tensor};
use xdit_comm::Comm;

use crate::link::{Place, buffer, wait};
use crate::methods::vae::SplitRows;
use crate::rows::{Rows, Whole};
use crate::split;

/// Gives some rows of `image` to each rank of `comm`, and puts together on the first rank the rows that `work` makes
/// of them. Only the first rank needs to have the image.
///
/// # Shapes
/// `image`: `shape`, `[b, c, y, x]` with at least a row for each rank, f32. `work` makes as many rows of each row.
///
/// # Panics
/// If there are more ranks than rows, or the first rank has no image.
pub fn split_rows(
    comm: &Comm,
    image: Option<Tensor<4>>,
    shape: [usize; 4],
    device: &Device,
    work: impl FnOnce(Tensor<4>, &dyn Rows) -> Tensor<4>,
) -> Option<Tensor<4>> {
    if comm.size() == 1 {
        return Some(work(image.expect("the first rank has the image"), &Whole));
    }
    let place = Place { device: device.clone(), dtype: DType::F32 };
    let image: Tensor<4> =
        place.tensor(&wait(comm.broadcast(0, image.map(buffer), place.spec(shape))), shape);
    let shares = split::even(shape[2], comm.size());
    let lengths: Vec<usize> = shares.iter().map(ExactSizeIterator::len).collect();
    let own = shares[comm.rank()].clone();
    let rows = SplitRows::new(comm.clone(), lengths.clone());
    let part = work(image.narrow(2, own.start, own.len()), &rows);
    if comm.rank() > 0 {
        wait(comm.send(0, buffer(part)));
        return None;
    }
    let ([b, c, y, x], place) = (part.dims(), Place::of(&part));
    let others = lengths.iter().enumerate().skip(1).map(|(rank, length)| {
        let shape = [b, c, y / lengths[0] * length, x];
        place.wait(comm.recv(rank, place.spec(shape)), shape)
    });
    Some(Tensor::cat(std::iter::once(part.clone()).chain(others).collect(), 2))
}
