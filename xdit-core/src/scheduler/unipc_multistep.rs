//! UniPC: a multistep predictor, and a corrector that costs no evaluation of the model.

use burn::tensor::Tensor;

use super::clip::{Clip, clip};
use super::dpm_solver::{length_zero, read_order};
use super::flow_match_euler_discrete::Shift;
use super::level::{Level, exp_m1};
use super::noise_schedule::NoiseSchedule;
use super::options::SchedulerOptions;
use super::prediction::Prediction;
use super::sigmas::{SigmaOptions, Spread, place};
use super::timesteps::{Spacing, Timesteps};
use super::{History, Scheduler, Steps};
use crate::{Error, Result};

/// UniPC (arXiv 2302.04867) of orders one to three.
///
/// # Source
/// diffusers 0.42.1, `UniPCMultistepScheduler`.
#[derive(Debug)]
pub(super) struct UniPcMultistep {
    timesteps: Vec<f32>,
    /// The level at the beginning of each step, and at the end of the last.
    levels: Vec<Level>,
    solver_order: usize,
    lower_order_final: bool,
    /// Whether the predicted data is integrated, not the predicted noise.
    predict_x0: bool,
    kind: Kind,
    prediction: Prediction,
    clip: Option<Clip>,
    /// The steps whose result is not corrected.
    uncorrected: Vec<usize>,
}

/// The function B(h) of the method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Bh1,
    Bh2,
}

impl UniPcMultistep {
    pub(super) fn new(options: &mut SchedulerOptions<'_>, steps: &Steps) -> Result<Self> {
        let kind = options.choice(
            "solver_type",
            Kind::Bh2,
            &[
                ("bh1", Kind::Bh1),
                ("bh2", Kind::Bh2),
                // The values in configs taken over from DPM-Solver and DEIS.
                ("midpoint", Kind::Bh2),
                ("heun", Kind::Bh2),
                ("logrho", Kind::Bh2),
            ],
        )?;
        let solver_order = read_order(options)?;
        let predict_x0 = options.flag("predict_x0", true)?;
        let mut names = Prediction::NAMES.to_vec();
        if predict_x0 {
            names.push(("flow_prediction", Prediction::Flow));
        }
        let prediction = options.choice("prediction_type", Prediction::Epsilon, &names)?;
        let clip = Clip::threshold(options)?.filter(|_| predict_x0);
        let uncorrected = options.counts("disable_corrector")?.unwrap_or_default();
        options.refuse("solver_p", "another scheduler cannot be the predictor")?;

        let (shift, steps) = (Shift::of_flow(options, steps)?, steps.count);
        let terminal = options.number("shift_terminal", 0.0)?;
        let sigma_options = SigmaOptions::new(
            options,
            &[
                ("use_karras_sigmas", Spread::Karras),
                ("use_exponential_sigmas", Spread::Exponential),
                ("use_beta_sigmas", Spread::Beta),
                ("use_flow_sigmas", Spread::FlowFromOne { shift, terminal }),
            ],
        )?;
        if kind == Kind::Bh1 && sigma_options.ends_at_zero() {
            return Err(Error::usage("option `solver_type` is `bh1` with `final_sigmas_type` `zero`")
                .hint("set `solver_type` to `bh2`, or `final_sigmas_type` to `sigma_min`"));
        }
        let schedule = NoiseSchedule::new(options)?.with_finite_sigmas();
        let grid = Timesteps::new(options, Spacing::Linspace, schedule.len(), steps)?;
        // The grid ends at timestep 0, where a run is already finished, so that point is left out.
        let visited = grid.below(schedule.len(), steps + 1);
        let placed = place(visited, &sigma_options, &schedule, steps, |spread| spread == Spread::Karras);
        let mut sigmas = sigma_options.with_final(&placed.sigmas, &placed.table);
        let last = sigmas.len() - 1;
        if sigma_options.spread != Spread::Timesteps && !sigma_options.ends_at_zero() {
            // This class ends at the smallest level of the run, not of the training.
            sigmas[last] = sigmas[last - 1];
        }

        let flow = matches!(sigma_options.spread, Spread::FlowFromOne { .. });
        let scheduler = Self {
            levels: sigmas.into_iter().map(|sigma| Level::new(sigma, flow)).collect(),
            timesteps: placed.timesteps,
            solver_order,
            lower_order_final: options.flag("lower_order_final", true)?,
            predict_x0,
            kind,
            prediction,
            clip,
            uncorrected,
        };
        let steps = scheduler.timesteps.len();
        let is_finite = |step: usize| {
            scheduler.predictor(step).is_finite()
                && (!scheduler.is_corrected(step) || scheduler.corrector(step).is_finite())
        };
        match (0..steps).find(|step| !is_finite(*step)) {
            None => Ok(scheduler),
            Some(step) => Err(length_zero(step, steps)),
        }
    }

    fn order(&self, step: usize) -> usize {
        let left = if self.lower_order_final { self.timesteps.len() - step } else { usize::MAX };
        self.solver_order.min(left).min(step + 1)
    }

    /// Whether the sample at the beginning of `step` is corrected.
    fn is_corrected(&self, step: usize) -> bool {
        step > 0 && !self.uncorrected.contains(&(step - 1))
    }

    /// The update from the beginning of `step` to its end.
    fn predictor(&self, step: usize) -> Update {
        let order = self.order(step);
        let Basis { mut update, mut matrix, mut rhs } = self.basis(step, order);
        // The last row and column belong to the end of the step, whose output is not known yet.
        rhs.truncate(order - 1);
        matrix.truncate(order - 1);
        matrix.iter_mut().for_each(|row| row.truncate(order - 1));
        update.slopes = match order {
            1 => Vec::new(),
            2 => vec![0.5],
            _ => solve(matrix, rhs),
        };
        update
    }

    /// The same update, with the output at its end: from the beginning of the step before `step`.
    fn corrector(&self, step: usize) -> Update {
        let order = self.order(step - 1);
        let Basis { mut update, matrix, rhs } = self.basis(step - 1, order);
        update.slopes = match order {
            1 => vec![0.5],
            _ => solve(matrix, rhs),
        };
        update
    }

    fn basis(&self, step: usize, order: usize) -> Basis {
        let (start, end) = (self.levels[step], self.levels[step + 1]);
        let h = end.lambda - start.lambda;
        let places: Vec<f32> =
            (1..order).map(|age| (self.levels[step - age].lambda - start.lambda) / h).collect();
        let (sample, scale, signed_h) = if self.predict_x0 {
            (end.sigma / start.sigma, end.alpha, -h)
        } else {
            (end.alpha / start.alpha, end.sigma, h)
        };
        let phi_1 = exp_m1(signed_h);
        let b_h = match self.kind {
            Kind::Bh1 => signed_h,
            Kind::Bh2 => phi_1,
        };
        let (mut phi, mut factorial) = (phi_1 / signed_h - 1.0, 1.0f32);
        let (mut matrix, mut rhs) = (Vec::new(), Vec::new());
        for row in 1..=order {
            let power = |place: f32| (1..row).fold(1.0, |power, _| power * place);
            matrix.push(places.iter().map(|place| power(*place)).chain([1.0]).collect());
            rhs.push(phi * factorial / b_h);
            factorial *= (row + 1) as f32;
            phi = phi / signed_h - (1.0 / f64::from(factorial)) as f32;
        }
        let update = Update { sample, newest: scale * phi_1, scale: scale * b_h, places, slopes: Vec::new() };
        Basis { update, matrix, rhs }
    }
}

/// An update without the weights of its slopes, and the equations for these weights.
struct Basis {
    update: Update,
    matrix: Vec<Vec<f32>>,
    rhs: Vec<f32>,
}

/// The factors of an update.
#[derive(Debug)]
struct Update {
    sample: f32,
    newest: f32,
    /// The factor of the sum of slopes.
    scale: f32,
    /// The places of the earlier outputs, in units of the step.
    places: Vec<f32>,
    /// The weights of the slopes to the earlier outputs and, in a corrector, to the output at the end.
    slopes: Vec<f32>,
}

impl Update {
    fn is_finite(&self) -> bool {
        let Self { sample, newest, scale, places, slopes } = self;
        let inverse = places.iter().map(|place| 1.0 / place);
        [*sample, *newest, *scale]
            .into_iter()
            .chain(inverse)
            .chain(slopes.iter().copied())
            .all(f32::is_finite)
    }

    /// The sample at the end, from `sample` and the outputs of `history`. A corrector also has the output at the `end`.
    fn apply(&self, sample: Tensor<3>, history: &History, end: Option<Tensor<3>>) -> Tensor<3> {
        let newest = history.output(0);
        let earlier = self.places.iter().enumerate().map(|(age, place)| {
            let slope = (history.output(age + 1) - newest.clone()) / *place;
            slope * self.slopes[age]
        });
        let sum = earlier.reduce(|sum, slope| sum + slope);
        let last = end.map(|end| (end - newest.clone()) * self.slopes[self.places.len()]);
        let sum = match (sum, last) {
            (Some(sum), Some(last)) => Some(sum + last),
            (sum, last) => sum.or(last),
        };
        let next = sample * self.sample - newest * self.newest;
        match sum {
            Some(sum) => next - sum * self.scale,
            None => next,
        }
    }
}

/// The solution of a small system of linear equations, computed in f64: elimination with partial pivoting.
fn solve(matrix: Vec<Vec<f32>>, rhs: Vec<f32>) -> Vec<f32> {
    let mut rows: Vec<Vec<f64>> = matrix
        .into_iter()
        .zip(rhs)
        .map(|(row, rhs)| row.into_iter().chain([rhs]).map(f64::from).collect())
        .collect();
    let n = rows.len();
    for column in 0..n {
        let size = |row: &usize| rows[*row][column].abs();
        let pivot = (column..n).max_by(|a, b| size(a).total_cmp(&size(b))).expect("a row is left");
        rows.swap(column, pivot);
        for row in column + 1..n {
            let factor = rows[row][column] / rows[column][column];
            for k in column..=n {
                rows[row][k] -= factor * rows[column][k];
            }
        }
    }
    let mut solution = vec![0.0; n];
    for row in (0..n).rev() {
        let known: f64 = (row + 1..n).map(|k| rows[row][k] * solution[k]).sum();
        solution[row] = (rows[row][n] - known) / rows[row][row];
    }
    solution.into_iter().map(|x| x as f32).collect()
}

impl Scheduler for UniPcMultistep {
    fn timesteps(&self) -> &[f32] {
        &self.timesteps
    }

    fn data(&self, step: usize, output: Tensor<3>, sample: Tensor<3>) -> Tensor<3> {
        let Level { alpha, sigma, .. } = self.levels[step];
        clip(self.clip, self.prediction.data(sample, output, alpha, sigma))
    }

    fn step_in_f32(
        &self,
        step: usize,
        history: &mut History,
        output: Tensor<3>,
        sample: Tensor<3>,
        _: Option<Tensor<3>>,
    ) -> Tensor<3> {
        let output = if self.predict_x0 {
            self.data(step, output, sample.clone())
        } else {
            let Level { alpha, sigma, .. } = self.levels[step];
            self.prediction.noise(sample.clone(), output, alpha, sigma)
        };
        let sample = if self.is_corrected(step) {
            self.corrector(step).apply(history.sample(), history, Some(output.clone()))
        } else {
            sample
        };
        history.push(step, output, self.solver_order);
        history.keep_sample(sample.clone());
        self.predictor(step).apply(sample, history, None)
    }
}
