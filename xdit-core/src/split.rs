//! Division of a length into parts.

use std::ops::Range;

/// Divides `0..length` into `parts` runs whose lengths differ by at most one, longer ones first.
pub fn even(length: usize, parts: usize) -> Vec<Range<usize>> {
    let (each, longer) = (length / parts, length % parts);
    let start = |part: usize| part * each + part.min(longer);
    (0..parts).map(|part| start(part)..start(part + 1)).collect()
}

/// Divides items of different `weights` into `parts` runs. The longest run is as short as possible. Of all such
/// divisions, the heaviest run is as light as possible. Of those, lengths differ least, and longer runs come first.
pub fn balanced(weights: &[usize], parts: usize) -> Vec<Range<usize>> {
    let longest = weights.len().div_ceil(parts);
    // For the best division of `start..` into some runs: the largest weight, the sum of squared lengths, and the end of
    // the first run.
    let mut best: Vec<Option<(usize, usize, usize)>> = vec![None; weights.len() + 1];
    best[weights.len()] = Some((0, 0, 0));
    let mut ends = Vec::new();
    for _ in 0..parts {
        let way = |start: usize| {
            let ends = (start + 1..=weights.len().min(start + longest)).rev();
            let ways = ends.filter_map(|end| {
                let (heaviest, squares, _) = best[end]?;
                let weight = weights[start..end].iter().sum();
                Some((heaviest.max(weight), squares + (end - start).pow(2), end))
            });
            // Of equal ones, the first: its run is the longest.
            ways.min_by_key(|&(heaviest, squares, _)| (heaviest, squares))
        };
        best = (0..=weights.len()).map(way).collect();
        ends.push(best.clone());
    }
    let mut start = 0;
    let mut runs = Vec::new();
    for best in ends.iter().rev() {
        let (_, _, end) = best[start].expect("there are no more parts than items");
        runs.push(start..end);
        start = end;
    }
    runs
}

/// Consecutive runs of the given lengths, from 0.
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
    fn equal_weights_are_split_evenly() {
        for length in 1..30 {
            for parts in 1..=length.min(9) {
                assert_eq!(balanced(&vec![3; length], parts), even(length, parts), "{length} in {parts}");
            }
        }
    }

    #[test]
    fn heavy_items_make_short_runs_as_long_as_no_run_grows() {
        // As in FLUX: no stage has more blocks than in an even split, and the first has fewer of the heavy ones.
        let weights = [vec![2; 19], vec![1; 38]].concat();
        assert_eq!(balanced(&weights, 4), [0..12, 12..27, 27..42, 42..57]);
        assert_eq!(balanced(&[9, 1, 1, 1], 2), [0..2, 2..4]);
        assert_eq!(balanced(&[9, 1, 1, 1, 1], 2), [0..2, 2..5]);
    }

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
