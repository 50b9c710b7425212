//! Rows in DistriFusion: each strip of the image uses the border rows and the moments of the other strips from the
//! previous step, while those of this step are transferred.
//!
//! Source: DistriFusion (Li et al. 2024) §4; the authors' `distrifuser`, `DistriConv2dPP` and `DistriGroupNorm`.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use burn::tensor::Tensor;
use xdit_kernels::{Affine, Conv2d, Moments};

use crate::attention::Qkv;
use crate::link::Link;
use crate::methods::distrifusion::{Delayed, Exchange};
use crate::methods::vae::{SplitRows, conv_between};
use crate::rows::{Rows, Whole};
use crate::split;

/// The strips of an image: one on each rank of a link, or all on a single rank.
#[derive(Debug)]
pub struct StaleRows {
    /// The strips in proportion to their rows.
    shares: Vec<usize>,
    /// The strip of this rank, if it has only one.
    apart: Option<SplitRows>,
    memory: RefCell<Memory>,
}

/// A pass of some strips through the model.
#[derive(Clone, Debug)]
pub struct StripPass {
    /// The first one of its guidance branches.
    pub branch: usize,
    /// The strips of this pass that this rank has: all of a single rank's in a synchronous step, otherwise one.
    pub strips: Range<usize>,
    /// The mode of the step's exchange.
    pub exchange: Exchange,
}

/// The first guidance branch, and the number of the call in its passes, all of which make the same calls.
type Call = (usize, usize);

#[derive(Debug)]
struct Memory {
    pass: StripPass,
    /// The number of calls in this pass so far.
    calls: usize,
    /// The rows of neighbours: those above, and those below.
    rows: Delayed<Call, 4>,
    /// Stacked means and deviations of other strips.
    moments: Delayed<Call, 2>,
    /// The moments of this rank's strip in the previous step.
    own_moments: HashMap<Call, Moments>,
    /// The values of all strips, on a single rank.
    strips: HashMap<Call, Strips>,
}

/// The values of all strips at one call.
#[derive(Debug, Default)]
struct Strips {
    before: Vec<Strip>,
    /// Those of this step so far.
    after: Vec<Strip>,
}

#[derive(Clone, Debug)]
enum Strip {
    /// The last rows, for the strip below, and the first ones, for the strip above, as far as they are used.
    Borders([Option<Tensor<4>>; 2]),
    Moments(Moments),
}

impl StaleRows {
    /// Creates the strips of `link`'s ranks, or of a single rank; strip `i` has a share of `shares[i]` of the rows.
    pub fn new(link: Option<Arc<dyn Link>>, shares: Vec<usize>) -> Self {
        let exchange = Exchange { synchronous: true, send: false };
        let memory = Memory {
            pass: StripPass { branch: 0, strips: 0..shares.len(), exchange },
            calls: 0,
            rows: Delayed::default(),
            moments: Delayed::default(),
            own_moments: HashMap::new(),
            strips: HashMap::new(),
        };
        let apart = link.map(|link| SplitRows::new(link, shares.clone()));
        Self { shares, apart, memory: RefCell::new(memory) }
    }

    /// Sets the pass to which the next calls belong.
    pub fn begin(&mut self, pass: StripPass) {
        let memory = self.memory.get_mut();
        memory.pass = pass;
        memory.calls = 0;
    }

    /// The rows of each strip in an image of all strips.
    fn runs(&self, rows: usize) -> Vec<Range<usize>> {
        let all: usize = self.shares.iter().sum();
        split::consecutive(&self.shares.iter().map(|share| rows * share / all).collect::<Vec<_>>())
    }

    /// The last `above` rows of the strip above and the first `below` rows of the one below.
    fn neighbours(&self, x: &Tensor<4>, [above, below]: [usize; 2]) -> [Option<Tensor<4>>; 2] {
        let mut memory = self.memory.borrow_mut();
        let (call, StripPass { strips, exchange, .. }) = memory.next();
        if let Some(apart) = &self.apart {
            let arrived = memory.rows.exchange(call, exchange, || apart.exchange_borders(x, [above, below]));
            return apart.above_and_below(arrived, [above, below]);
        }
        let borders = |x: &Tensor<4>| {
            let rows = x.dims()[2];
            [(rows - above, above), (0, below)]
                .map(|(start, rows)| (rows > 0).then(|| x.clone().narrow(2, start, rows)))
        };
        let held = memory.strips.entry(call).or_default();
        if exchange.synchronous {
            if exchange.send {
                let strip =
                    |run: Range<usize>| Strip::Borders(borders(&x.clone().narrow(2, run.start, run.len())));
                held.before = self.runs(x.dims()[2]).into_iter().map(strip).collect();
            }
            return [None, None];
        }
        let at = strips.start;
        let rows_of = |strip: Option<usize>, border: usize| match held.before.get(strip?) {
            Some(Strip::Borders(borders)) => borders[border].clone(),
            _ => None,
        };
        let neighbours = [rows_of(at.checked_sub(1), 0), rows_of(Some(at + 1), 1)];
        held.push(Strip::Borders(borders(x)), self.shares.len());
        neighbours
    }
}

impl Memory {
    /// The next call of this pass.
    fn next(&mut self) -> (Call, StripPass) {
        self.calls += 1;
        ((self.pass.branch, self.calls), self.pass.clone())
    }
}

impl Strips {
    /// Keeps the value of the next strip. No strip uses it before all `strips` have been computed.
    fn push(&mut self, strip: Strip, strips: usize) {
        self.after.push(strip);
        if self.after.len() == strips {
            self.before = std::mem::take(&mut self.after);
        }
    }
}

impl Rows for StaleRows {
    fn conv(
        &self,
        conv: &Conv2d,
        x: Tensor<4>,
        norm: Option<&Affine>,
        residual: Option<Tensor<4>>,
    ) -> Tensor<4> {
        conv_between(conv, x, norm, residual, |x, halo| self.neighbours(x, halo))
    }

    /// The moments of the previous step's image, corrected by the change of this strip's. Where the corrected deviation is
    /// negative, that of the strip takes its place.
    fn moments(&self, x: Tensor<4>, groups: usize) -> Moments {
        let mut memory = self.memory.borrow_mut();
        let (call, StripPass { strips, exchange, .. }) = memory.next();
        let all_of = |moments: Vec<Moments>| moments.into_iter().reduce(Moments::merge).expect("some strips");
        if let Some(apart) = &self.apart {
            let own = Whole.moments(x, groups);
            let others = memory.moments.exchange(call, exchange, || apart.exchange_moments(&own));
            let before = memory.own_moments.insert(call, own.clone());
            let others = apart.of_others(others, own.count);
            let with = |own: Moments| {
                let mut all = others.clone();
                all.insert(apart.rank(), own);
                all_of(all)
            };
            return match before {
                Some(before) if !exchange.synchronous => corrected(with(before.clone()), &before, own),
                _ => with(own),
            };
        }
        let held = memory.strips.entry(call).or_default();
        if exchange.synchronous {
            if exchange.send {
                let strip =
                    |run: Range<usize>| Whole.moments(x.clone().narrow(2, run.start, run.len()), groups);
                held.before =
                    self.runs(x.dims()[2]).into_iter().map(|run| Strip::Moments(strip(run))).collect();
            }
            return Whole.moments(x, groups);
        }
        let own = Whole.moments(x, groups);
        let moments = |strip: &Strip| match strip {
            Strip::Moments(moments) => moments.clone(),
            Strip::Borders(_) => unreachable!("all passes make the same calls"),
        };
        let before: Vec<Moments> = held.before.iter().map(moments).collect();
        let own_before = before[strips.start].clone();
        held.push(Strip::Moments(own.clone()), self.shares.len());
        corrected(all_of(before), &own_before, own)
    }

    /// # Panics
    /// Always: the keys of other strips are those of `ParallelAttention`.
    fn attend(&self, _: Qkv) -> Tensor<4> {
        panic!("a model of strips attends through its `Attention`")
    }
}

/// The moments of the whole image: those of the previous step, `all`, plus the change from `before` to `now` in one strip's
/// mean and mean square.
///
/// With means m and variances v, the variance is v(all) + v(now) − v(before) + 2 (m(now) − m(before)) (m(before) −
/// m(all)): written so, no large squares cancel.
fn corrected(all: Moments, before: &Moments, now: Moments) -> Moments {
    let variance = |moments: &Moments| moments.deviation.clone().div_scalar(moments.count as f64);
    let change = now.mean.clone() - before.mean.clone();
    let cross = (change.clone() * (before.mean.clone() - all.mean.clone())).mul_scalar(2.0);
    let corrected = variance(&all) + variance(&now) - variance(before) + cross;
    let negative = corrected.clone().lower_elem(0.0);
    let corrected = corrected.mask_where(negative, variance(&now));
    Moments { count: all.count, mean: all.mean + change, deviation: corrected.mul_scalar(all.count as f64) }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{DType, Device, TensorData};

    use super::*;

    fn moments(count: usize, mean: [f32; 2], deviation: [f32; 2]) -> Moments {
        let row = |values: [f32; 2]| {
            Tensor::from_data(TensorData::new(values.to_vec(), [1, 2]), (&Device::flex(), DType::F32))
        };
        Moments { count, mean: row(mean), deviation: row(deviation) }
    }

    fn values(x: &Tensor<2>) -> Vec<f32> {
        x.to_data().try_to_vec().unwrap()
    }

    fn assert_near(actual: &[f32], expected: &[f64]) {
        let near = actual.iter().zip(expected).all(|(a, b)| (f64::from(*a) - b).abs() <= 1e-5 * b.abs());
        assert!(near, "{actual:?} are not {expected:?}");
    }

    /// The formula of the paper: means and mean squares of the previous image, plus the changes in the own strip.
    #[test]
    fn moments_are_corrected_by_the_change_of_the_own_strip() {
        let (all, before, now) = (
            moments(12, [1.0, -3.0], [24.0, 60.0]),
            moments(4, [0.5, -2.0], [8.0, 12.0]),
            moments(4, [0.75, -2.5], [10.0, 20.0]),
        );
        let corrected = corrected(all.clone(), &before, now.clone());
        assert_eq!(corrected.count, 12);
        let number = |x: &Tensor<2>, index: usize| f64::from(values(x)[index]);
        let (mut means, mut deviations) = (Vec::new(), Vec::new());
        for index in 0..2 {
            let mean = |moments: &Moments| number(&moments.mean, index);
            let square = |moments: &Moments| {
                number(&moments.deviation, index) / moments.count as f64 + mean(moments).powi(2)
            };
            let expected = mean(&all) + mean(&now) - mean(&before);
            means.push(expected);
            deviations.push(12.0 * (square(&all) + square(&now) - square(&before) - expected.powi(2)));
        }
        assert_near(&values(&corrected.mean), &means);
        assert_near(&values(&corrected.deviation), &deviations);
    }

    #[test]
    fn a_strip_that_does_not_change_corrects_nothing_and_no_deviation_is_negative() {
        let (all, own) = (moments(12, [1.0, -3.0], [24.0, 60.0]), moments(4, [0.5, -2.0], [8.0, 12.0]));
        let same = corrected(all.clone(), &own, own.clone());
        assert_eq!(values(&same.mean), values(&all.mean));
        assert_near(&values(&same.deviation), &[24.0, 60.0]);
        // The first group's deviation would be 12 · (2 + 0.25 − 9), of which that of the strip takes the place.
        let before = moments(4, [0.5, -2.0], [36.0, 12.0]);
        let now = moments(4, [0.5, -2.0], [1.0, 12.0]);
        assert_near(&values(&corrected(all, &before, now).deviation), &[3.0, 60.0]);
    }
}
