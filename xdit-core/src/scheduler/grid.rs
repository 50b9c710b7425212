//! The grids behind timestep tables, with the rounding of NumPy and PyTorch.

/// `numpy.linspace(start, stop, count)`.
pub(super) fn linspace(start: f64, stop: f64, count: usize) -> Vec<f64> {
    let step = (stop - start) / (count as f64 - 1.0);
    let mut grid: Vec<f64> =
        (0..count).map(|i| if i == 0 { start } else { i as f64 * step + start }).collect();
    // NumPy stores `stop` itself as the last value, because the sum may miss it by a rounding error.
    if count > 1 {
        grid[count - 1] = stop;
    }
    grid
}

/// `torch.linspace(start, stop, count)` in f32, which counts from the nearer end.
pub(super) fn linspace_f32(start: f32, stop: f32, count: usize) -> Vec<f32> {
    let step = (stop - start) / (count as f32 - 1.0);
    (0..count)
        .map(|i| match count {
            1 => start,
            _ if i < count / 2 => step.mul_add(i as f32, start),
            _ => (-step).mul_add((count - 1 - i) as f32, stop),
        })
        .collect()
}

/// `numpy.arange(start, 0, -step)`.
pub(super) fn arange_down(start: f64, step: f64) -> Vec<f64> {
    let count = (start / step).ceil() as usize;
    // NumPy computes the distance between the first two values and uses it for all.
    let delta = (start - step) - start;
    (0..count).map(|i| start + i as f64 * delta).collect()
}

/// `numpy.interp(x, range(len(table)), table)`: interpolates between entries; outside the table, its first or last
/// entry.
pub(super) fn interpolate(x: f64, table: &[f32]) -> f64 {
    let last = table.len() - 1;
    if x <= 0.0 || last == 0 {
        return table[0].into();
    }
    if x >= last as f64 {
        return table[last].into();
    }
    let i = x as usize;
    let (low, high) = (f64::from(table[i]), f64::from(table[i + 1]));
    (high - low) * (x - i as f64) + low
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grids_have_the_right_ends() {
        assert_eq!(linspace(0.0, 999.0, 1), [0.0]);
        assert_eq!(linspace(0.0, 1.0, 3), [0.0, 0.5, 1.0]);
        assert_eq!(linspace_f32(0.5, 2.0, 1), [0.5]);
        assert_eq!(linspace_f32(0.0, 1.0, 4), [0.0, 1.0 / 3.0, 1.0 - 1.0 / 3.0, 1.0]);
        assert_eq!(arange_down(10.0, 4.0), [10.0, 6.0, 2.0]);
        // 1000 / (1000 / 61) is a little more than 61, and NumPy's grid has 62 values.
        assert_eq!(arange_down(1000.0, 1000.0 / 61.0).len(), 62);
    }

    #[test]
    fn interpolation_reproduces_the_entries_and_ends() {
        let table = [1.0, 3.0, 7.0];
        assert_eq!(
            [-1.0, 0.0, 0.5, 1.0, 1.75, 2.0, 9.0].map(|x| interpolate(x, &table)),
            [1.0, 1.0, 2.0, 3.0, 6.0, 7.0, 7.0]
        );
    }
}
