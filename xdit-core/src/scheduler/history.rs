//! The previous outputs, and the previous sample, that a solver of higher order needs.

use std::ops::Range;

use burn::tensor::Tensor;

/// The model outputs of the last steps of a sample, or of a patch of it.
///
/// A history belongs to one request, which starts with [`History::default`].
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Oldest first, already converted to the quantity that the solver integrates.
    outputs: Vec<Tensor<3>>,
    /// An earlier sample, from which the solver starts once more.
    sample: Option<Tensor<3>>,
    /// The step of the newest output.
    step: Option<usize>,
}

impl History {
    /// The part of this history that belongs to the tokens in `span`, used when a sample is split into patches.
    ///
    /// # Panics
    /// If `span` is not within the tokens.
    pub fn narrow(&self, span: Range<usize>) -> Self {
        let cut = |tensor: &Tensor<3>| tensor.clone().narrow(1, span.start, span.len());
        Self {
            outputs: self.outputs.iter().map(cut).collect(),
            sample: self.sample.as_ref().map(cut),
            step: self.step,
        }
    }

    /// The number of stored outputs.
    pub(super) fn len(&self) -> usize {
        self.outputs.len()
    }

    /// The output of `age` steps ago; 0 is the newest.
    pub(super) fn output(&self, age: usize) -> Tensor<3> {
        self.outputs[self.outputs.len() - 1 - age].clone()
    }

    /// The sample that was [kept](Self::keep_sample) last.
    ///
    /// # Panics
    /// If there is none.
    pub(super) fn sample(&self) -> Tensor<3> {
        self.sample.clone().expect("an earlier step keeps its sample")
    }

    /// Keeps `sample` instead of the one before.
    pub(super) fn keep_sample(&mut self, sample: Tensor<3>) {
        self.sample = Some(sample);
    }

    /// Adds the output of `step` and drops all but the newest `keep`.
    ///
    /// # Panics
    /// If `step` does not follow the last one, so the history belongs to another request or patch.
    pub(super) fn push(&mut self, step: usize, output: Tensor<3>, keep: usize) {
        if let Some(last) = self.step {
            assert_eq!(
                step,
                last + 1,
                "step {step} does not follow step {last}, the last one of the history"
            );
        }
        self.step = Some(step);
        self.outputs.push(output);
        let forgotten = self.outputs.len().saturating_sub(keep);
        self.outputs.drain(..forgotten);
    }
}
