//! Decodes a picture on several ranks, each of which has some of its rows.

use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor};

use crate::link::{Link, Place};
use crate::methods::vae::SplitRows;
use crate::rows::{Rows, Whole};
use crate::split;

/// Runs `work` on each rank of `link` with some rows of `image`, and concatenates the resulting rows on the first rank.
/// Only the first rank needs to have the image.
///
/// # Shapes
/// `image`: `shape`, `[b, c, y, x]` in f32, with at least one row for each rank. `work` must turn each row into the
/// same number of rows.
///
/// # Panics
/// If there are more ranks than rows, or the first rank has no image.
pub fn split_rows(
    link: &Arc<dyn Link>,
    image: Option<Tensor<4>>,
    shape: [usize; 4],
    device: &Device,
    work: impl FnOnce(Tensor<4>, &dyn Rows) -> Tensor<4>,
) -> Option<Tensor<4>> {
    if link.size() == 1 {
        return Some(work(image.expect("the first rank has the image"), &Whole));
    }
    let image = match image {
        Some(image) => {
            let sends = (1..link.size()).map(|to| (to, image.clone())).collect();
            link.exchange(sends, Vec::new()).wait();
            image
        }
        None => {
            let place = Place { device: device.clone(), dtype: DType::F32 };
            link.exchange(Vec::new(), vec![(0, place.slot(shape))]).wait_one()
        }
    };
    let shares = split::even(shape[2], link.size());
    let lengths: Vec<usize> = shares.iter().map(ExactSizeIterator::len).collect();
    let own = shares[link.rank()].clone();
    let rows = SplitRows::new(link.clone(), lengths.clone());
    let part = work(image.narrow(2, own.start, own.len()), &rows);
    if link.rank() > 0 {
        link.exchange(vec![(0, part)], Vec::new()).wait();
        return None;
    }
    let ([b, c, y, x], place) = (part.dims(), Place::of(&part));
    let slot = |(rank, length)| (rank, place.slot([b, c, y / lengths[0] * length, x]));
    let slots = lengths.iter().copied().enumerate().skip(1).map(slot).collect();
    let others = link.exchange(Vec::new(), slots).wait();
    Some(Tensor::cat([vec![part], others].concat(), 2))
}
