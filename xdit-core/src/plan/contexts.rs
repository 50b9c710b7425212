//! The number of steps whose contexts are computed together.

use std::ops::Range;

use crate::split;

/// The memory budget for the contexts of a branch, in bytes: about thirty steps of FLUX in f32.
const BUDGET_BYTES: usize = 128 << 20;

/// The least number of steps computed together, whatever their size. One product of this many rows reads the weights
/// little more often than one of all rows. It also has enough rows to be summed in the same order as any larger number.
const MIN_STEPS: usize = 24;

/// Divides a branch's `steps` into chunks. The contexts of a chunk are computed together at its first step.
pub fn chunks(steps: &Range<usize>, bytes_per_step: usize) -> Vec<Range<usize>> {
    chunks_within(BUDGET_BYTES, steps, bytes_per_step)
}

fn chunks_within(budget_bytes: usize, steps: &Range<usize>, bytes_per_step: usize) -> Vec<Range<usize>> {
    let most = (budget_bytes / bytes_per_step.max(1)).max(MIN_STEPS);
    let parts = split::even(steps.len(), steps.len().div_ceil(most));
    parts.into_iter().map(|part| steps.start + part.start..steps.start + part.end).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::single_range_in_vec_init, reason = "one chunk is a list of one range")]
    fn chunks_are_even_and_neither_large_nor_tiny() {
        let flux = 4 << 20;
        assert_eq!(chunks(&(0..28), flux), [0..28]);
        assert_eq!(chunks(&(0..50), flux), [0..25, 25..50]);
        assert_eq!(chunks(&(3..10_000), 0), [3..10_000]);
        for steps in 1..200 {
            for (budget, size) in [(0, 1), (BUDGET_BYTES, flux), (BUDGET_BYTES, 1 << 40), (1 << 20, 1 << 15)]
            {
                let chunks = chunks_within(budget, &(7..7 + steps), size);
                assert_eq!((chunks[0].start, chunks[chunks.len() - 1].end), (7, 7 + steps));
                assert!(chunks.windows(2).all(|pair| pair[0].end == pair[1].start));
                let longest = chunks.iter().map(ExactSizeIterator::len).max().unwrap();
                assert!(longest <= MIN_STEPS || longest * size <= budget);
                // With fewer rows, the kernel of linear layers would take another route.
                let shortest = chunks.iter().map(ExactSizeIterator::len).min().unwrap();
                assert!(chunks.len() == 1 || shortest >= MIN_STEPS / 2, "{chunks:?}");
            }
        }
    }
}
