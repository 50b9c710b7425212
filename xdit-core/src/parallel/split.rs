//! Cutting a length into parts.

use std::ops::Range;

/// `0..length` in `parts` runs whose lengths differ by at most one, longer ones first.
pub fn even(length: usize, parts: usize) -> Vec<Range<usize>> {
    let (each, longer) = (length / parts, length % parts);
    let start = |part: usize| part * each + part.min(longer);
    (0..parts).map(|part| start(part)..start(part + 1)).collect()
}

/// Runs of the given lengths, one after the other.
pub fn consecutive(lengths: &[usize]) -> Vec<Range<usize>> {
    let mut start = 0;
    lengths
        .iter()
        .map(|length| {
            let range = start..start + length;
            start = range.end;
            range
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_the_whole_and_differ_by_at_most_one() {
        for length in 0..40 {
            for parts in 1..12 {
                let ranges = even(length, parts);
                assert_eq!(ranges.iter().map(Range::len).sum::<usize>(), length);
                assert!(ranges.windows(2).all(|pair| pair[0].end == pair[1].start));
                assert!(ranges[0].len() - ranges[parts - 1].len() <= 1);
            }
        }
    }
}
