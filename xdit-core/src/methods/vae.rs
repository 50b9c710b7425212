//! Rows: each rank holds some rows of an image. The parallel VAE splits it so from the latents to the picture, and a UNet
//! in each step.
//!
//! Nothing is approximated. Convolutions take the neighbours' rows where a rank's own end, and zeros at the border of
//! the image only; group norms merge the moments of all ranks; attention passes keys and values around.

use std::sync::Arc;

use burn::tensor::Tensor;
use xdit_kernels::{Affine, Conv2d, Moments, join_rows};

use crate::attention::{Qkv, scale};
use crate::link::{Arriving, Link, Place};
use crate::methods::keys::{Keys, Kv};
use crate::methods::ring::Ring;
use crate::rows::{Rows, Whole};

/// The rows of one rank among those of the ranks of a link, the first of which has the topmost.
#[derive(Clone, Debug)]
pub struct SplitRows {
    link: Arc<dyn Link>,
    ring: Ring,
    /// Rows of each rank, at the resolution of the input.
    shares: Vec<usize>,
}

impl SplitRows {
    /// Creates this rank's rows among those of the ranks of `link`; rank `i` has `shares[i]` rows.
    ///
    /// # Panics
    /// If the number of shares is not the number of ranks, or if a share has no rows.
    pub fn new(link: Arc<dyn Link>, shares: Vec<usize>) -> Self {
        assert_eq!(shares.len(), link.size(), "a share for each rank");
        assert!(!shares.contains(&0), "a rank without rows has none to give to its neighbours: {shares:?}");
        Self { ring: Ring::new(link.clone()), link, shares }
    }

    /// The number of items of each rank, if this rank has `own` and all rows have equally many.
    fn of_each(&self, own: usize) -> Vec<usize> {
        let share = self.shares[self.link.rank()];
        self.shares.iter().map(|theirs| own * theirs / share).collect()
    }

    /// This rank's index among them.
    pub(super) fn rank(&self) -> usize {
        self.link.rank()
    }

    /// Sends the border rows of `x`, and receives the last `above` rows of the rank above and the first `below` rows of
    /// the one below, as far as there are such ranks and rows.
    pub(super) fn exchange_borders(&self, x: &Tensor<4>, [above, below]: [usize; 2]) -> Arriving<4> {
        let [b, c, rows, cols] = x.dims();
        assert!(rows >= above.max(below), "{rows} rows are too few to give {above} and {below} of them");
        let (mut sends, mut receives) = (Vec::new(), Vec::new());
        let [up, down] = self.neighbours();
        for (neighbour, taken, given) in [(up, above, 0..below), (down, below, rows - above..rows)] {
            let Some(neighbour) = neighbour else { continue };
            if !given.is_empty() {
                sends.push((neighbour, x.clone().narrow(2, given.start, given.len())));
            }
            if taken > 0 {
                receives.push((neighbour, Place::of(x).slot([b, c, taken, cols])));
            }
        }
        self.link.exchange(sends, receives)
    }

    /// The rows that [`exchange_borders`](Self::exchange_borders) received: those above, and those below.
    pub(super) fn above_and_below(
        &self,
        rows: Vec<Tensor<4>>,
        [above, below]: [usize; 2],
    ) -> [Option<Tensor<4>>; 2] {
        let mut rows = rows.into_iter();
        let [up, down] = self.neighbours();
        [(up, above), (down, below)].map(|(neighbour, taken)| {
            neighbour.filter(|_| taken > 0).map(|_| rows.next().expect("rows of each neighbour"))
        })
    }

    /// Sends this rank's moments to all others, and receives theirs.
    pub(super) fn exchange_moments(&self, own: &Moments) -> Arriving<2> {
        let [b, groups] = own.mean.dims();
        let shapes = vec![[2 * b, groups]; self.link.size()];
        let both = Tensor::cat(vec![own.mean.clone(), own.deviation.clone()], 0);
        self.link.gather_others(both, &shapes)
    }

    /// The moments of the other ranks, as [`exchange_moments`](Self::exchange_moments) received them, if those of this
    /// rank are of `own` elements.
    pub(super) fn of_others(&self, moments: Vec<Tensor<2>>, own: usize) -> Vec<Moments> {
        let mut counts = self.of_each(own);
        counts.remove(self.rank());
        let of_rank = |(both, count): (Tensor<2>, usize)| {
            let b = both.dims()[0] / 2;
            Moments { count, mean: both.clone().narrow(0, 0, b), deviation: both.narrow(0, b, b) }
        };
        moments.into_iter().zip(counts).map(of_rank).collect()
    }

    /// The ranks above and below.
    fn neighbours(&self) -> [Option<usize>; 2] {
        let rank = self.link.rank();
        [rank.checked_sub(1), Some(rank + 1).filter(|&below| below < self.link.size())]
    }
}

impl Rows for SplitRows {
    fn conv(
        &self,
        conv: &Conv2d,
        x: Tensor<4>,
        norm: Option<&Affine>,
        residual: Option<Tensor<4>>,
    ) -> Tensor<4> {
        conv_between(conv, x, norm, residual, |x, halo| {
            self.above_and_below(self.exchange_borders(x, halo).wait(), halo)
        })
    }

    fn moments(&self, x: Tensor<4>, groups: usize) -> Moments {
        let own = Whole.moments(x, groups);
        let mut moments = self.of_others(self.exchange_moments(&own).wait(), own.count);
        moments.insert(self.rank(), own);
        moments.into_iter().reduce(Moments::merge).expect("the moments of this rank at least")
    }

    fn attend(&self, pixels: Qkv) -> Tensor<4> {
        let (scale, tokens) = (scale(&pixels.q), self.of_each(pixels.k.dims()[1]));
        let keys = Keys::new(None, Kv { k: pixels.k, v: pixels.v });
        self.ring.attend(pixels.q, None, keys, &tokens, scale).0
    }
}

/// A convolution of some rows of an image. `neighbours` gets them, and the numbers of rows that the kernel reaches above
/// and below; it returns the rows there, or `None` at the border of the image.
///
/// # Panics
/// If the convolution neither keeps rows nor divides or doubles their number, or if it upsamples and adds a residual.
pub(super) fn conv_between(
    conv: &Conv2d,
    x: Tensor<4>,
    norm: Option<&Affine>,
    residual: Option<Tensor<4>>,
    neighbours: impl FnOnce(&Tensor<4>, [usize; 2]) -> [Option<Tensor<4>>; 2],
) -> Tensor<4> {
    let [top, bottom, left, right] = conv.padding;
    let [_, _, kernel, _] = conv.weight.dims();
    let doubled = if conv.upsample { 2 } else { 1 };
    let rows = x.dims()[2] * doubled;
    assert!(rows.is_multiple_of(conv.stride), "{rows} rows in steps of {}", conv.stride);
    // With a stride, the kernel may end before the padding at the bottom does.
    let used = kernel.checked_sub(conv.stride + top).filter(|used| *used <= bottom);
    let bottom = used.expect("a convolution that keeps rows, but for its stride");
    assert!(residual.is_none() || !conv.upsample, "no model adds a residual as it upsamples");
    if [top, bottom] == [0, 0] {
        return Whole.conv(conv, x, norm, residual);
    }
    // Where there is a neighbour, its rows stand for the padding. They double, too, so there may be more than the padding
    // had, and the result has rows that are the neighbour's.
    let halo = [top, bottom].map(|padding| padding.div_ceil(doubled));
    let [above, below] = neighbours(&x, halo);
    let padding =
        [if above.is_some() { 0 } else { top }, if below.is_some() { 0 } else { bottom }, left, right];
    let first = above.as_ref().map_or(0, |_| halo[0] * doubled - top);
    let x = join_rows(above, x, below);
    let y = Whole.conv(&Conv2d { padding, ..conv.clone() }, x, norm, residual);
    if conv.upsample { y.narrow(2, first, rows) } else { y }
}
