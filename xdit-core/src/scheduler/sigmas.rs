//! Noise levels that are chosen directly, not through timesteps.

use super::beta::quantile;
use super::flow_match_euler_discrete::Shift;
use super::grid::{interpolate, linspace};
use super::noise_schedule::NoiseSchedule;
use super::options::SchedulerOptions;
use crate::{Error, Result};

/// The distribution of noise levels between the largest and the smallest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Spread {
    /// The levels of the chosen timesteps.
    Timesteps,
    /// Even in σ^(1/7) (arXiv 2206.00364).
    Karras,
    /// Even in ln σ.
    Exponential,
    /// Quantiles of a beta distribution (arXiv 2407.12173).
    Beta,
    /// Even in ln σ as well, but from a table of logarithms (arXiv 2206.00927).
    Lu,
    /// The straight path of flow matching, shifted towards the noise by `shift`.
    Flow { shift: Shift },
    /// The same path from the grid of UniPC, stretched to end at `terminal` unless it is zero.
    FlowFromOne { shift: Shift, terminal: f64 },
}

impl Spread {
    /// Reads the spread from the options; `spreads` lists the options and spreads that the scheduler supports
    /// besides `Timesteps`.
    pub(super) fn chosen(
        options: &mut SchedulerOptions<'_>,
        spreads: &[(&'static str, Self)],
    ) -> Result<Self> {
        let mut chosen: Vec<(&str, Self)> = Vec::new();
        for (name, spread) in spreads {
            if options.flag(name, false)? {
                chosen.push((name, *spread));
            }
        }
        if let [(first, _), (second, _), ..] = chosen[..] {
            return Err(Error::usage(format!("options `{first}` and `{second}` are both `true`"))
                .hint("set all but one to `false`: a run has one spread of noise levels"));
        }
        Ok(chosen.first().map_or(Self::Timesteps, |(_, spread)| *spread))
    }
}

/// Noise levels evenly spaced in σ^(1/7).
pub(super) fn karras(max: f64, min: f64, steps: usize) -> Vec<f64> {
    const RHO: f64 = 7.0;
    let (max, min) = (max.powf(1.0 / RHO), min.powf(1.0 / RHO));
    linspace(0.0, 1.0, steps).into_iter().map(|ramp| (max + ramp * (min - max)).powf(RHO)).collect()
}

/// Noise levels evenly spaced in ln σ.
pub(super) fn exponential(max: f64, min: f64, steps: usize) -> Vec<f64> {
    linspace(max.ln(), min.ln(), steps).into_iter().map(f64::exp).collect()
}

/// Noise levels at the quantiles of a beta distribution.
pub(super) fn beta(max: f64, min: f64, steps: usize) -> Vec<f64> {
    let shares = linspace(0.0, 1.0, steps).into_iter().map(|ramp| 1.0 - ramp);
    shares.map(|share| min + quantile(share) * (max - min)).collect()
}

/// The options that determine the noise levels of a run.
pub(super) struct SigmaOptions {
    pub(super) spread: Spread,
    sigma_min: Option<f64>,
    sigma_max: Option<f64>,
    /// Whether the last step ends at the smallest training σ instead of zero.
    ends_at_sigma_min: bool,
}

impl SigmaOptions {
    /// Reads the options; `spreads` as in [`Spread::chosen`].
    pub(super) fn new(
        options: &mut SchedulerOptions<'_>,
        spreads: &[(&'static str, Spread)],
    ) -> Result<Self> {
        let spread = Spread::chosen(options, spreads)?;
        let ends_at_sigma_min =
            options.choice("final_sigmas_type", false, &[("zero", false), ("sigma_min", true)])?;
        Ok(Self {
            spread,
            sigma_min: options.optional_number("sigma_min")?,
            sigma_max: options.optional_number("sigma_max")?,
            ends_at_sigma_min,
        })
    }

    /// The same options, without the largest and the smallest level that they set.
    pub(super) fn without_bounds(self) -> Self {
        Self { sigma_min: None, sigma_max: None, ..self }
    }

    /// Whether the last step removes all noise.
    pub(super) fn ends_at_zero(&self) -> bool {
        !self.ends_at_sigma_min
    }

    /// The noise levels of a run of `steps`, from the largest to the smallest.
    ///
    /// `visited` holds the levels of the chosen timesteps, and `trained` those of training. `bounds` is the largest
    /// and the smallest level, used unless the options set others.
    pub(super) fn sigmas(
        &self,
        visited: Vec<f64>,
        bounds: (f64, f64),
        trained: &LogSigmas,
        steps: usize,
    ) -> Vec<f64> {
        let max = self.sigma_max.unwrap_or(bounds.0);
        let min = self.sigma_min.unwrap_or(bounds.1);
        match self.spread {
            Spread::Timesteps => visited,
            Spread::Karras => karras(max, min, steps),
            Spread::Exponential => exponential(max, min, steps),
            Spread::Beta => beta(max, min, steps),
            Spread::Lu => {
                let (max, min) = trained.bounds();
                let ramp = linspace(0.0, 1.0, steps).into_iter();
                ramp.map(|ramp| (max + ramp * (min - max)).exp()).collect()
            }
            Spread::Flow { shift } => {
                let alphas = linspace(1.0, 1.0 / trained.len() as f64, steps + 1).into_iter();
                let mut shifted: Vec<_> = alphas.map(|alpha| shift.level(1.0 - alpha)).collect();
                shifted.reverse();
                shifted.truncate(steps);
                shifted
            }
            Spread::FlowFromOne { shift, terminal } => {
                let sigmas = linspace(1.0, 1.0 / trained.len() as f64, steps + 1).into_iter().take(steps);
                let mut levels: Vec<_> = sigmas.map(|sigma| shift.level(sigma)).collect();
                if terminal != 0.0 {
                    let stretch = (1.0 - levels[steps - 1]) / (1.0 - terminal);
                    levels.iter_mut().for_each(|sigma| *sigma = 1.0 - (1.0 - *sigma) / stretch);
                }
                // Without signal, λ would not be finite.
                if (levels[0] - 1.0).abs() < 1e-6 {
                    levels[0] -= 1e-6;
                }
                levels
            }
        }
    }

    /// The levels in f32, followed by the level at the end of the last step; `table` holds the training levels.
    pub(super) fn with_final(&self, sigmas: &[f64], table: &[f32]) -> Vec<f32> {
        let last = if self.ends_at_sigma_min { table[0] } else { 0.0 };
        sigmas.iter().map(|sigma| *sigma as f32).chain([last]).collect()
    }
}

/// The timesteps of a run and their noise levels.
pub(super) struct Placed {
    pub(super) timesteps: Vec<f32>,
    pub(super) sigmas: Vec<f64>,
    /// The noise levels of the training timesteps.
    pub(super) table: Vec<f32>,
}

impl Placed {
    /// The noise levels in f32, followed by zero.
    pub(super) fn sigmas_to_zero(&self) -> Vec<f32> {
        self.sigmas.iter().map(|sigma| *sigma as f32).chain([0.0]).collect()
    }
}

/// Places the `steps` of a run. The options decide whether noise levels follow from the timesteps `visited`, or
/// timesteps from noise levels; the latter are rounded for the spreads that `rounds` selects.
pub(super) fn place(
    visited: Vec<f64>,
    options: &SigmaOptions,
    schedule: &NoiseSchedule,
    steps: usize,
    rounds: impl Fn(Spread) -> bool,
) -> Placed {
    let table = schedule.sigmas();
    let trained = LogSigmas::new(&table);
    let bounds = (table[table.len() - 1].into(), table[0].into());
    let at_visited = visited.iter().map(|t| interpolate(*t, &table)).collect();
    let sigmas = options.sigmas(at_visited, bounds, &trained, steps);
    let looked_up = || sigmas.iter().map(|sigma| trained.timestep(*sigma));
    let timesteps: Vec<f64> = match options.spread {
        Spread::Timesteps => visited,
        Spread::Flow { .. } | Spread::FlowFromOne { .. } => {
            sigmas.iter().map(|sigma| sigma * schedule.len() as f64).collect()
        }
        spread if rounds(spread) => looked_up().map(f64::round_ties_even).collect(),
        _ => looked_up().collect(),
    };
    // The model is always given whole timesteps, even for noise levels between them.
    let timesteps = timesteps.into_iter().map(|t| t.trunc() as f32).collect();
    Placed { timesteps, sigmas, table }
}

/// As [`place`], for solvers whose model accepts timesteps between whole ones. The largest and the smallest level are those of
/// the timesteps `visited`.
pub(super) fn place_between(
    visited: Vec<f64>,
    options: &SigmaOptions,
    schedule: &NoiseSchedule,
    steps: usize,
    rounds: impl Fn(Spread) -> bool,
) -> Placed {
    let table = schedule.sigmas();
    let trained = LogSigmas::new(&table);
    let at_visited: Vec<f64> = visited.iter().map(|t| interpolate(*t, &table)).collect();
    let bounds = (at_visited[0], at_visited[at_visited.len() - 1]);
    let sigmas = options.sigmas(at_visited, bounds, &trained, steps);
    let timesteps = sigmas.iter().map(|sigma| trained.timestep(*sigma));
    let timesteps = match options.spread {
        Spread::Timesteps => visited.into_iter().map(|t| t as f32).collect(),
        spread if rounds(spread) => timesteps.map(|t| t.round_ties_even() as f32).collect(),
        _ => timesteps.map(|t| t as f32).collect(),
    };
    Placed { timesteps, sigmas, table }
}

/// The logarithms of the training noise levels, used to look up timesteps.
pub(super) struct LogSigmas(Vec<f32>);

impl LogSigmas {
    pub(super) fn new(sigmas: &[f32]) -> Self {
        Self(sigmas.iter().copied().map(ln_f32).collect())
    }

    /// The largest and the smallest logarithm.
    pub(super) fn bounds(&self) -> (f64, f64) {
        (self.0[self.0.len() - 1].into(), self.0[0].into())
    }

    fn len(&self) -> usize {
        self.0.len()
    }

    /// The timestep with the noise level `sigma`, usually between two training timesteps.
    pub(super) fn timestep(&self, sigma: f64) -> f64 {
        let ln_sigma = sigma.max(1e-10).ln();
        let at_most = self.0.iter().rposition(|level| f64::from(*level) <= ln_sigma).unwrap_or(0);
        let i = at_most.min(self.0.len() - 2);
        let (low, high) = (self.0[i], self.0[i + 1]);
        let weight = ((f64::from(low) - ln_sigma) / f64::from(low - high)).clamp(0.0, 1.0);
        (1.0 - weight) * i as f64 + weight * (i + 1) as f64
    }

    /// The same for a level in f32, with the rounding of the same formula in f32.
    pub(super) fn timestep_f32(&self, sigma: f32) -> f32 {
        let ln_sigma = ln_f32(sigma.max(1e-10));
        let at_most = self.0.iter().rposition(|level| *level <= ln_sigma).unwrap_or(0);
        let i = at_most.min(self.0.len() - 2);
        let (low, high) = (self.0[i], self.0[i + 1]);
        let weight = ((low - ln_sigma) / (low - high)).clamp(0.0, 1.0);
        (1.0 - weight) * i as f32 + weight * (i + 1) as f32
    }
}

/// The logarithm with the f32 rounding of NumPy, which is off by a few units in the last place. The rounding
/// matters because timesteps computed from it are rounded down.
///
/// # Source
/// NumPy, `numpy/_core/src/umath/loops_exponent_log.dispatch.c.src` (`simd_log_FLOAT`).
fn ln_f32(x: f32) -> f32 {
    const P: [f32; 6] = [2.589_979e-2, 0.380_883_77, 1.480_000_6, 2.112_677_6, 1.0, 0.0];
    const Q: [f32; 6] = [5.875_095_4e-3, 0.154_647_64, 0.986_494_3, 2.453_006, 2.612_677_6, 1.0];

    // x = m · 2^e with m in (√½, √2]; the rational function is in m - 1.
    let bits = x.to_bits();
    let exponent = (bits >> 23) as i32 - 127;
    let one_to_two = f32::from_bits(bits & 0x007f_ffff | 0x3f80_0000);
    let (m, e) = if one_to_two > std::f32::consts::SQRT_2 {
        (one_to_two * 0.5, exponent + 1)
    } else {
        (one_to_two, exponent)
    };
    let polynomial = |c: [f32; 6]| c[1..].iter().fold(c[0], |y, c| y.mul_add(m - 1.0, *c));
    (e as f32).mul_add(std::f32::consts::LN_2, polynomial(P) / polynomial(Q))
}
