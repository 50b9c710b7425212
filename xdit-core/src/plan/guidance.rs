//! Guidance: the conditions of each branch, and the combination of the branches' predictions into one.

use std::ops::Range;

use burn::tensor::Tensor;
use xdit_kernels::Moments;

/// A branch of guidance as a plan describes it: its steps and its blocks.
///
/// Branch 0 is computed in every step. With classifier-free guidance it is the negative one, and branch 1 the positive
/// one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Branch {
    /// Steps in which the branch takes part; those beyond the last step of a run are ignored.
    pub steps: Range<usize>,
    /// Blocks that the branch skips: tokens pass them unchanged.
    pub skip_layers: Vec<usize>,
}

impl Branch {
    /// A branch that takes part in every step, with all blocks.
    pub fn whole() -> Self {
        Self { steps: 0..usize::MAX, skip_layers: Vec::new() }
    }

    /// One branch, or two if classifier-free guidance is on.
    pub fn classifier_free(guided: bool) -> Vec<Self> {
        vec![Self::whole(); if guided { 2 } else { 1 }]
    }
}

/// The conditions of a picture's branches, and the terms that combine their predictions: the result is the prediction
/// of branch 0 plus all terms.
#[derive(Clone, Debug)]
pub struct Guidance<C> {
    /// The conditions of each branch.
    pub branches: Vec<C>,
    /// The terms added to the prediction of branch 0.
    pub terms: Vec<Term>,
    /// The share of the result that is [rescaled](Self::rescaled).
    pub rescale: f32,
}

/// `scale · (to − from)`, in the steps in which both branches take part.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Term {
    /// The branch to move away from.
    pub from: usize,
    /// The branch to move towards.
    pub to: usize,
    /// The factor of the difference.
    pub scale: f32,
}

impl<C> Guidance<C> {
    /// No guidance: a single branch.
    pub fn none(conditions: C) -> Self {
        Self { branches: vec![conditions], terms: Vec::new(), rescale: 0.0 }
    }

    /// Guidance from the negative branch towards the positive one and, with a scale above 1, beyond it.
    ///
    /// # Source
    /// Classifier-free guidance (Ho & Salimans 2022), with the weight as in Imagen.
    pub fn classifier_free(negative: C, positive: C, scale: f32) -> Self {
        let terms = vec![Term { from: 0, to: 1, scale }];
        Self { branches: vec![negative, positive], terms, rescale: 0.0 }
    }

    /// Classifier-free guidance with a scale above 1, otherwise none.
    pub fn of_scale(negative: C, positive: C, scale: f32) -> Self {
        if scale > 1.0 { Self::classifier_free(negative, positive, scale) } else { Self::none(positive) }
    }

    /// The same guidance with `of` applied to the conditions of each branch.
    pub fn map<D>(&self, of: impl FnMut(&C) -> D) -> Guidance<D> {
        let branches = self.branches.iter().map(of).collect();
        Guidance { branches, terms: self.terms.clone(), rescale: self.rescale }
    }

    /// Adds a branch that has the conditions of the last one and skips some blocks; the prediction moves away from
    /// it.
    ///
    /// # Source
    /// Skip-layer guidance of Stable Diffusion 3.5, as in diffusers' `StableDiffusion3Pipeline`.
    pub fn skip_layers(mut self, scale: f32) -> Self
    where
        C: Clone,
    {
        let from = self.branches.len();
        let to = from - 1;
        self.branches.push(self.branches[to].clone());
        self.terms.push(Term { from, to, scale });
        self
    }

    /// The same guidance, with a `share` of the combined prediction rescaled to the standard deviation, over the whole
    /// picture, of the positive branch's: strong guidance otherwise increases it.
    ///
    /// # Source
    /// Lin et al. 2023 (arXiv 2305.08891) §3.4; diffusers' `rescale_noise_cfg`.
    #[must_use]
    pub fn rescaled(self, share: f32) -> Self {
        Self { rescale: share, ..self }
    }

    /// Combines the predictions of the branches that take part in a step.
    ///
    /// # Panics
    /// If branch 0 has no prediction.
    pub fn combine(&self, predictions: &[Option<Tensor<3>>]) -> Tensor<3> {
        let first = predictions[0].clone().expect("branch 0 takes part in every step");
        let terms = self.terms.iter().filter_map(|term| {
            let difference = predictions[term.to].clone()? - predictions[term.from].clone()?;
            Some(difference.mul_scalar(term.scale))
        });
        terms.fold(first, |sum, term| sum + term)
    }

    /// Rescales the [combined](Self::combine) prediction, if this is requested. `moments` computes the moments of a
    /// prediction over the whole picture.
    pub fn rescale(
        &self,
        combined: Tensor<3>,
        predictions: &[Option<Tensor<3>>],
        moments: impl Fn(Tensor<3>) -> Moments,
    ) -> Tensor<3> {
        let positive = self.terms.first().and_then(|term| predictions[term.to].clone());
        let Some(positive) = positive.filter(|_| self.rescale != 0.0) else { return combined };
        let squares = |x: &Tensor<3>| moments(x.clone()).deviation;
        let ratio = (squares(&positive) / squares(&combined)).sqrt();
        let factor = ratio.mul_scalar(self.rescale).add_scalar(1.0 - self.rescale);
        combined * factor.unsqueeze_dim(2)
    }
}
