//! Previews: the data that the model predicts during a run, put together from the ranks that have its parts.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Instant;

use burn::tensor::{DType, Device, Tensor, TensorData};

use crate::picture::{resize_and_crop, to_picture};
use crate::run::observer::{Completed, Observer, Phase, Preview, Step};
use crate::run::record::RankReport;
use crate::tokens::{Positions, Tokens, pack, unpack};

/// A part of the data that the model predicts for a picture, from the rank that has it.
///
/// Ranks send nothing to each other for a preview: each reports its tokens, and [`Parts`] puts them together.
#[derive(Clone, Debug)]
pub struct Glimpse {
    /// Index of the picture.
    pub image: usize,
    /// The number of finished steps.
    pub done: usize,
    /// The place of the tokens in the picture.
    pub tokens: Range<usize>,
    /// The predicted data `[1, n, c]` at these `n` tokens, packed as latents are, in f32.
    pub latents: TensorData,
}

/// The parts of predictions that have arrived. With PipeFusion and several pictures at a time, those of several steps and
/// pictures arrive in turns.
pub struct Parts {
    positions: Positions,
    patch: usize,
    /// Tokens, and features of a token.
    shape: [usize; 2],
    /// By picture and number of finished steps: the values so far, and the number of tokens that they have.
    arrived: BTreeMap<(usize, usize), (Vec<f32>, usize)>,
}

impl Parts {
    /// No parts yet of pictures with latents of `shape` in patches of `patch` latent pixels.
    ///
    /// # Shapes
    /// `shape`: `[1, c, y, x]`, or `[1, c, frames, y, x]` of clips.
    ///
    /// # Panics
    /// If `shape` has another length.
    pub fn new(shape: &[usize], patch: usize) -> Self {
        let device = Device::flex();
        let tokens = match *shape {
            [b, c, y, x] => pack(Tensor::<4>::zeros([b, c, y, x], (&device, DType::F32)), patch),
            [b, c, frames, y, x] => {
                pack(Tensor::<5>::zeros([b, c, frames, y, x], (&device, DType::F32)), patch)
            }
            _ => panic!("latents have four dimensions, or five with frames: {shape:?}"),
        };
        let [_, n, c] = tokens.x.dims();
        Self { positions: tokens.positions, patch, shape: [n, c], arrived: BTreeMap::new() }
    }

    /// Adds a part. If it was the last one of a prediction, returns its latents, on the CPU.
    ///
    /// # Shapes
    /// The result is `[1, c, frames, y, x]`; a picture has one frame.
    ///
    /// # Panics
    /// If the part has another number of features, or lies outside the picture.
    pub fn add(&mut self, glimpse: &Glimpse) -> Option<Tensor<5>> {
        let Glimpse { image, done, tokens, latents } = glimpse;
        let [n, c] = self.shape;
        let key = (*image, *done);
        let (values, count) = self.arrived.entry(key).or_insert_with(|| (vec![0.0; n * c], 0));
        let part = latents.as_slice::<f32>().expect("latents are f32");
        values[tokens.start * c..tokens.end * c].copy_from_slice(part);
        *count += tokens.len();
        if *count < n {
            return None;
        }
        let (values, _) = self.arrived.remove(&key)?;
        let x = Tensor::from_data(TensorData::new(values, [1, n, c]), (&Device::flex(), DType::F32));
        Some(unpack(Tokens { x, positions: self.positions.clone() }, self.patch))
    }
}

/// Passes on all events, and turns the parts of predictions into previews.
pub struct Previews<'a> {
    observer: &'a mut dyn Observer,
    /// The colours of latents.
    colours: &'a dyn Fn(Tensor<5>) -> Tensor<4>,
    parts: Parts,
    /// The size of the pictures.
    size: [usize; 2],
    /// The number of steps of a picture.
    steps: usize,
}

impl<'a> Previews<'a> {
    /// Previews of pictures of `size`, after `steps` steps, from `parts`. `colours` turns latents `[1, c, frames, y, x]` into
    /// colours `[frames, 3, y, x]` with values about -1 to 1.
    pub fn new(
        observer: &'a mut dyn Observer,
        colours: &'a dyn Fn(Tensor<5>) -> Tensor<4>,
        parts: Parts,
        size: [usize; 2],
        steps: usize,
    ) -> Self {
        Self { observer, colours, parts, size, steps }
    }
}

impl Observer for Previews<'_> {
    fn begin(&mut self, phase: Phase, at: Instant) {
        self.observer.begin(phase, at);
    }

    fn end(&mut self, phase: Phase, at: Instant) {
        self.observer.end(phase, at);
    }

    fn step(&mut self, step: Step, at: Instant) {
        self.observer.step(step, at);
    }

    fn warn(&mut self, message: &str) {
        self.observer.warn(message);
    }

    fn glimpse(&mut self, glimpse: Glimpse) {
        let Some(latents) = self.parts.add(&glimpse) else { return };
        let small = self.size.map(|side| (side / 2).max(1));
        let colours = resize_and_crop((self.colours)(latents), small);
        let frames = (0..colours.dims()[0]).map(|frame| to_picture(&colours, frame)).collect();
        let Glimpse { image, done, .. } = glimpse;
        self.observer.preview(Preview { image, done, of: self.steps, frames });
    }

    fn completed(&mut self, completed: Completed) {
        self.observer.completed(completed);
    }

    fn rank(&mut self, report: RankReport) {
        self.observer.rank(report);
    }

    fn wants_details(&self) -> bool {
        self.observer.wants_details()
    }
}
