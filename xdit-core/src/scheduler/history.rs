//! What a multistep solver remembers of the steps before.

use std::ops::Range;

use burn::tensor::Tensor;

/// The model outputs of the last steps of a sample, or of a patch of it.
///
/// Belongs to one request: a new one begins with [`History::default`].
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Oldest first, already converted to what the solver integrates.
    outputs: Vec<Tensor<3>>,
    /// The step that made the newest one.
    step: Option<usize>,
}

impl History {
    /// The part of this history that belongs to the tokens in `span`, for going on in patches.
    ///
    /// # Panics
    /// If `span` is not within the tokens.
    pub fn narrow(&self, span: Range<usize>) -> Self {
        let outputs =
            self.outputs.iter().map(|output| output.clone().narrow(1, span.start, span.len())).collect();
        Self { outputs, step: self.step }
    }

    /// How many outputs there are.
    pub(super) fn len(&self) -> usize {
        self.outputs.len()
    }

    /// The output of `age` steps ago, 0 being the newest.
    pub(super) fn output(&self, age: usize) -> Tensor<3> {
        self.outputs[self.outputs.len() - 1 - age].clone()
    }

    /// Adds the output of `step` and forgets all but the newest `keep`.
    ///
    /// # Panics
    /// If `step` does not follow the last one: the history is of another request or patch.
    pub(super) fn push(&mut self, step: usize, output: Tensor<3>, keep: usize) {
        if let Some(last) = self.step {
            assert_eq!(step, last + 1, "the history ends with step {last}, so step {step} cannot follow");
        }
        self.step = Some(step);
        self.outputs.push(output);
        let forgotten = self.outputs.len().saturating_sub(keep);
        self.outputs.drain(..forgotten);
    }
}
