//! The definition of a run with patches and warm-up, on one device and without the engine: plain tensors, token by
//! token.

use std::collections::HashMap;
use std::ops::Range;

use burn::tensor::Tensor;
use burn::tensor::activation::softmax;
use xdit_core::attention::{Attention, Qkv, Site, Span};
use xdit_core::plan::guidance::{Branch, Guidance, Term};
use xdit_core::scheduler::{History, Scheduler};
use xdit_core::split;
use xdit_core::tokens::Tokens;
use xdit_core::transformer::Transformer;

use crate::world::picture_noise;

/// A known mistake of other implementations, to show that tests would detect it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The text's keys are present twice, as if two ranks had each contributed them.
    TextTwice,
    /// The order of the keys does not match that of their values.
    KeysMoved,
    /// Tokens attend to a key of zeros.
    PaddingSeen,
    /// Keys of other patches are not kept.
    CacheLost,
    /// The patches after the first one do not attend to the text.
    TextLost,
    /// Every patch has the positions of the first one.
    PositionsLost,
    /// Tokens attend to those of the next frame in place of their own.
    FramesMoved,
    /// Attention within a place is attention to the next place.
    PlacesMixed,
}

/// The order in which the patches of a picture are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turns {
    /// The number of patches of the picture.
    pub patches: usize,
    /// The number of steps at the start in which the picture is whole.
    pub warmup_steps: usize,
    /// Whether patches use the keys of the others from the previous step (DistriFusion), instead of their latest keys
    /// (PipeFusion). The first step after the warm-up is then whole, too, because it has no keys of a previous step.
    pub displaced: bool,
}

/// Attention of some tokens to the latest keys of all tokens so far.
#[derive(Default)]
struct Remembering {
    /// The tokens of this pass.
    tokens: Range<usize>,
    image: HashMap<Site, [Tensor<4>; 2]>,
    /// The keys and values of the previous step, if patches use those of each other.
    before: Option<HashMap<Site, [Tensor<4>; 2]>>,
    text: HashMap<Site, [Tensor<4>; 2]>,
    fault: Option<Fault>,
}

impl Remembering {
    fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    /// `before` with the tokens of this pass replaced by `fresh`.
    fn replace(&self, before: &Tensor<4>, fresh: Tensor<4>) -> Tensor<4> {
        let Range { start, end } = self.tokens;
        let mut parts = vec![fresh];
        if start > 0 {
            parts.insert(0, before.clone().narrow(1, 0, start));
        }
        if end < before.dims()[1] {
            parts.push(before.clone().narrow(1, end, before.dims()[1] - end));
        }
        Tensor::cat(parts, 1)
    }
}

impl Attention for Remembering {
    fn attend(&mut self, site: Site, image: Qkv, text: Option<Qkv>) -> (Tensor<4>, Option<Tensor<4>>) {
        let moved = |kv: [Tensor<4>; 2], fault| if self.has(fault) { kv.map(next_first) } else { kv };
        let Qkv { q, k, v } = image;
        match site.span {
            Span::All => self.attend_all(site, Qkv { q, k, v }, text),
            // Frame by frame, each with its places as tokens.
            Span::Frame { frames } => {
                let [b, n, h, d] = q.dims();
                let by_frame = |x: Tensor<4>| {
                    let x = x.reshape([b, n / frames, frames, h, d]).permute([0, 2, 1, 3, 4]);
                    x.reshape([b * frames, n / frames, h, d])
                };
                let [k, v] = moved([k, v].map(by_frame), Fault::FramesMoved);
                let tokens = self.tokens.clone();
                self.tokens = tokens.start / frames..tokens.end / frames;
                let (out, _) = self.attend_all(site, Qkv { q: by_frame(q), k, v }, None);
                self.tokens = tokens;
                let out = out.reshape([b, frames, n / frames, h, d]).permute([0, 2, 1, 3, 4]);
                (out.reshape([b, n, h, d]), None)
            }
            // Place by place, with nothing to remember: a patch has all frames of its places.
            Span::Place { frames } => {
                let [b, n, h, d] = q.dims();
                let by_place = |x: Tensor<4>| x.reshape([b * n / frames, frames, h, d]);
                let kv = moved([k, v].map(by_place), Fault::PlacesMixed);
                (attention(by_place(q), kv).reshape([b, n, h, d]), None)
            }
        }
    }
}

/// The second element of the batch first, and the first one last.
fn next_first(x: Tensor<4>) -> Tensor<4> {
    let b = x.dims()[0];
    Tensor::cat(vec![x.clone().narrow(0, 1, b - 1), x.narrow(0, 0, 1)], 0)
}

impl Remembering {
    fn attend_all(&mut self, site: Site, image: Qkv, text: Option<Qkv>) -> (Tensor<4>, Option<Tensor<4>>) {
        let fresh = [image.k, image.v];
        let beside = |others: &HashMap<Site, [Tensor<4>; 2]>| match others.get(&site) {
            Some([k, v]) if !self.has(Fault::CacheLost) => {
                let [fresh_k, fresh_v] = fresh.clone();
                [self.replace(k, fresh_k), self.replace(v, fresh_v)]
            }
            _ => fresh.clone(),
        };
        let mut kv = beside(self.before.as_ref().unwrap_or(&self.image));
        let latest = beside(&self.image);
        self.image.insert(site, latest);
        if self.has(Fault::KeysMoved) {
            let n = kv[0].dims()[1];
            let [first, rest] = [kv[0].clone().narrow(1, 0, 1), kv[0].clone().narrow(1, 1, n - 1)];
            kv[0] = Tensor::cat(vec![rest, first], 1);
        }

        let n_text = text.as_ref().map_or(0, |text| text.q.dims()[1]);
        let mut q = image.q;
        if let Some(text) = text {
            q = Tensor::cat(vec![text.q, q], 1);
            self.text.insert(site, [text.k, text.v]);
        }
        let lost = self.has(Fault::TextLost) && n_text == 0;
        let copies = if self.has(Fault::TextTwice) { 2 } else { 1 };
        for [k, v] in self.text.get(&site).filter(|_| !lost).into_iter().cycle().take(copies) {
            let [image_k, image_v] = kv;
            kv = [Tensor::cat(vec![k.clone(), image_k], 1), Tensor::cat(vec![v.clone(), image_v], 1)];
        }
        if self.has(Fault::PaddingSeen) {
            kv = kv.map(|x| Tensor::cat(vec![x.clone(), x.narrow(1, 0, 1).zeros_like()], 1));
        }

        let out = attention(q, kv);
        let [_, n, ..] = out.dims();
        let of_text = (n_text > 0).then(|| out.clone().narrow(1, 0, n_text));
        (out.narrow(1, n_text, n - n_text), of_text)
    }
}

/// `softmax(q kᵀ / √d) v` of `[b, n, h, d]`.
fn attention(q: Tensor<4>, [k, v]: [Tensor<4>; 2]) -> Tensor<4> {
    let d = q.dims()[3] as f32;
    let [q, k, v] = [q, k, v].map(|x| x.swap_dims(1, 2));
    let scores = q.matmul(k.swap_dims(2, 3)).div_scalar(d.sqrt());
    softmax(scores, 3).matmul(v).swap_dims(1, 2)
}

/// Denoises one picture: whole at the start and until each branch has run one step, then patch by patch. With one
/// patch this is the serial model.
///
/// # Shapes
/// `noise` and the result: `[b, n, c]`.
pub fn denoise<T: Transformer>(
    transformer: &T,
    scheduler: &dyn Scheduler,
    guidance: &Guidance<T::Conditions>,
    branches: &[Branch],
    noise: &Tokens,
    Turns { patches, warmup_steps, displaced }: Turns,
    fault: Option<Fault>,
) -> Tensor<3> {
    let [frames, ..] = noise.positions.extent();
    // Patches have all frames of their places.
    let in_frames = |places: Range<usize>| places.start * frames..places.end * frames;
    let spans: Vec<_> = split::even(noise.x.dims()[1] / frames, patches).into_iter().map(in_frames).collect();
    let whole = |span: &Range<usize>| noise.x.clone().narrow(1, span.start, span.len());
    let mut samples: Vec<_> = spans.iter().map(whole).collect();
    let mut histories = vec![History::default(); patches];
    let mut step_noise = picture_noise(noise, 0);
    let mut noise_of = |step, span: &_| scheduler.adds_noise(step).then(|| step_noise.of_step(step, span));
    let new = |_: &_| Remembering { fault, ..Remembering::default() };
    let mut attentions: Vec<_> = guidance.branches.iter().map(new).collect();
    let contexts: Vec<_> = guidance
        .branches
        .iter()
        .map(|conditions| transformer.contexts(&[conditions], scheduler.timesteps()))
        .collect();
    let mut whole_steps = warmup_steps + usize::from(displaced);
    for late in branches.iter().filter(|branch| branch.steps.start > 0) {
        whole_steps = whole_steps.max(late.steps.start + 1);
    }
    for step in 0..scheduler.timesteps().len() {
        let turns = if step < whole_steps { 1 } else { patches };
        for attention in attentions.iter_mut().filter(|_| displaced) {
            attention.before = Some(attention.image.clone());
        }
        for turn in split::even(patches, turns) {
            let tokens = spans[turn.start].start..spans[turn.end - 1].end;
            let sample = Tensor::cat(samples[turn.clone()].to_vec(), 1);
            let of_branch = |((branch, contexts), attention): ((&Branch, &Vec<_>), &mut Remembering)| {
                if !branch.steps.contains(&step) {
                    return None;
                }
                attention.tokens = tokens.clone();
                let context = &contexts[step];
                let x = scheduler.scale_model_input(sample.clone(), step);
                let seen = if fault == Some(Fault::PositionsLost) { 0..tokens.len() } else { tokens.clone() };
                let positions = noise.positions.select(&[seen]);
                let mut hidden = transformer.embed(Tokens { x, positions }, context);
                if tokens.start > 0 && !displaced {
                    hidden.text = None;
                }
                for block in 0..transformer.spec().blocks {
                    if !branch.skip_layers.contains(&block) {
                        hidden = transformer.block(block, hidden, context, attention);
                    }
                }
                Some(transformer.finish(hidden, context))
            };
            let predictions: Vec<_> =
                branches.iter().zip(&contexts).zip(&mut attentions).map(of_branch).collect();
            let mut prediction = predictions[0].clone().expect("the first branch has no pause");
            for Term { from, to, scale } in &guidance.terms {
                if let (Some(from), Some(to)) = (&predictions[*from], &predictions[*to]) {
                    prediction = prediction + (to.clone() - from.clone()).mul_scalar(*scale);
                }
            }
            for patch in turn {
                let span = &spans[patch];
                let prediction = prediction.clone().narrow(1, span.start - tokens.start, span.len());
                let sample = samples[patch].clone();
                samples[patch] =
                    scheduler.step(step, &mut histories[patch], prediction, sample, noise_of(step, span));
            }
        }
    }
    Tensor::cat(samples, 1)
}
