//! Tables of which a run needs only some rows.

use std::ops::Range;

use burn::tensor::Tensor;

use super::values::read;
use super::{Stay, Weights};
use crate::link::fail;

/// A matrix that stays in its file. Rows are read at each use.
#[derive(Clone)]
pub struct Table {
    pub(super) weights: Weights,
    pub(super) name: String,
    /// The shape in the file. The last dimension is a row.
    pub(super) shape: Vec<usize>,
}

impl Table {
    /// Reads `rows`.
    ///
    /// # Shapes
    /// Result `[rows, c]`, in the order of `rows`.
    ///
    /// # Panics
    /// If a row does not exist. If the file can no longer be read, the rank [fails](crate::link::catch).
    pub fn rows(&self, rows: impl IntoIterator<Item = usize>) -> Tensor<2> {
        let Self { weights, name, shape } = self;
        let entry = weights.entry(name, shape).expect("it was checked when the table was made");
        let width = *shape.last().expect("a row has a length");
        let row_bytes = entry.bytes.len() * width / shape.iter().product::<usize>();
        let (mut count, mut ranges) = (0, Vec::<Range<usize>>::new());
        for row in rows {
            count += 1;
            let bytes = row * row_bytes..(row + 1) * row_bytes;
            assert!(bytes.end <= entry.bytes.len(), "`{name}` has no row {row}");
            // The rows for one row of image tokens are contiguous, so they are read in one piece.
            match ranges.last_mut().filter(|range| range.end == bytes.start) {
                Some(range) => range.end = bytes.end,
                None => ranges.push(bytes),
            }
        }
        let shape = [count, width];
        let values = || read(entry, ranges, shape, weights.dtype());
        weights.put(name, shape, Stay::Briefly, values).unwrap_or_else(|error| fail(error))
    }
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} in a file", self.shape)
    }
}
