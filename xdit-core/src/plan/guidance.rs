//! Guidance: what a picture is conditioned on, branch by branch, and the one prediction made of those of all branches.

use std::ops::Range;

use burn::tensor::Tensor;

/// A branch of guidance as a plan knows it: when it is computed, and with which blocks.
///
/// Branch 0 is computed in every step. With classifier-free guidance it is the negative one, and branch 1 the positive
/// one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Branch {
    /// Steps in which it takes part; what is beyond the last step of a run does not count.
    pub steps: Range<usize>,
    /// Blocks that are left out: tokens pass them unchanged.
    pub skip_layers: Vec<usize>,
}

impl Branch {
    /// Computed in every step, with all blocks.
    pub fn whole() -> Self {
        Self { steps: 0..usize::MAX, skip_layers: Vec::new() }
    }

    /// One branch, or two if classifier-free guidance is on.
    pub fn classifier_free(guided: bool) -> Vec<Self> {
        vec![Self::whole(); if guided { 2 } else { 1 }]
    }
}

/// What a picture is conditioned on, and how its branches make one prediction: that of branch 0 with all terms added.
#[derive(Clone, Debug)]
pub struct Guidance<C> {
    /// The conditions of each branch.
    pub branches: Vec<C>,
    /// What is added to the prediction of branch 0.
    pub terms: Vec<Term>,
}

/// `scale · (to − from)`, in the steps in which both branches take part.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Term {
    /// The branch to go away from.
    pub from: usize,
    /// The branch to go towards.
    pub to: usize,
    /// How far.
    pub scale: f32,
}

impl<C> Guidance<C> {
    /// One branch.
    pub fn none(conditions: C) -> Self {
        Self { branches: vec![conditions], terms: Vec::new() }
    }

    /// From the negative branch towards the positive one and, with a scale above 1, beyond it.
    ///
    /// # Source
    /// Classifier-free guidance (Ho & Salimans 2022), with the weight as in Imagen.
    pub fn classifier_free(negative: C, positive: C, scale: f32) -> Self {
        Self { branches: vec![negative, positive], terms: vec![Term { from: 0, to: 1, scale }] }
    }

    /// The same guidance with other conditions: `of` what each branch has.
    pub fn map<D>(&self, of: impl FnMut(&C) -> D) -> Guidance<D> {
        Guidance { branches: self.branches.iter().map(of).collect(), terms: self.terms.clone() }
    }

    /// With one branch more, which has the conditions of the last one but leaves out some blocks: the prediction
    /// moves away from it.
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

    /// The prediction that the step is taken from, of those of the branches that take part in it.
    ///
    /// # Panics
    /// If branch 0 does not.
    pub fn combine(&self, predictions: &[Option<Tensor<3>>]) -> Tensor<3> {
        let first = predictions[0].clone().expect("branch 0 takes part in every step");
        let terms = self.terms.iter().filter_map(|term| {
            let difference = predictions[term.to].clone()? - predictions[term.from].clone()?;
            Some(difference.mul_scalar(term.scale))
        });
        terms.fold(first, |sum, term| sum + term)
    }
}
