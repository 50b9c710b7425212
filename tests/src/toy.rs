//! A small random transformer for tests that need no checkpoint. Hardly any of its sizes divide evenly.

use std::ops::Range;

use burn::tensor::{DType, Tensor, TensorData};
use serde_json::json;
use xdit_core::attention::{Attention, Qkv, Site, Span, cross_attention};
use xdit_core::linear::Linear;
use xdit_core::placement::Share;
use xdit_core::placement::{Placement, TensorShare};
use xdit_core::plan::guidance::{Branch, Guidance};
use xdit_core::plan::{Plan, Work};
use xdit_core::run::Loaded;
use xdit_core::scheduler::{Scheduler, scheduler};
use xdit_core::tokens::{Positions, Tokens};
use xdit_core::transformer::{Hidden, Transformer, TransformerSpec};
use xdit_kernels::{Activation, activate, layer_norm};

use crate::device;
use crate::world::Job;

/// The number of features of a text token.
const TEXT_DIM: usize = 6;

/// The role of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// There is no text.
    Alone,
    /// Image tokens attend to the text, which stays unchanged.
    Cross,
    /// Image and text attend to each other, and every block except the last one updates both.
    Joint,
    /// There is no text, and each block of the second half also takes the output of its mirror image in the first
    /// half.
    UShaped,
    /// There is no text, and the picture is a clip: in turn, blocks attend within frames and within places.
    Clip,
}

/// A toy transformer and the parameters of its run.
#[derive(Clone, Debug)]
pub struct Subject {
    /// The role of the text.
    pub kind: Kind,
    /// The sizes of the transformer.
    pub spec: TransformerSpec,
    /// The rows and columns of the picture, in tokens.
    pub grid: [usize; 2],
    /// The number of frames.
    pub frames: usize,
    /// The number of text tokens of each guidance branch.
    pub text_tokens: Vec<usize>,
    /// The number of steps of the noise scheduler.
    pub steps: usize,
    /// An additional guidance branch, with the text of the last one.
    pub skipping: Option<Branch>,
}

impl Subject {
    /// A model of `kind` that generates one picture with guidance.
    pub fn new(kind: Kind) -> Self {
        let (heads, blocks, grid) = match kind {
            Kind::Alone => (5, 4, [5, 7]),
            Kind::Cross => (7, 3, [3, 9]),
            Kind::Joint => (6, 5, [1, 37]),
            Kind::UShaped => (3, 5, [4, 6]),
            Kind::Clip => (5, 4, [5, 7]),
        };
        let skips = match kind {
            Kind::UShaped => (0..blocks / 2).map(|block| [block, blocks - 1 - block]).collect(),
            _ => Vec::new(),
        };
        let spec = TransformerSpec {
            patch: 1,
            channels: 3,
            blocks,
            heads,
            head_dim: 4,
            skips,
            block_parameters: Vec::new(),
        };
        let frames = if kind == Kind::Clip { 3 } else { 1 };
        Self { kind, spec, grid, frames, text_tokens: vec![3, 5], steps: 3, skipping: None }
    }

    /// The number of image tokens.
    pub fn tokens(&self) -> usize {
        self.grid[0] * self.grid[1] * self.frames
    }

    /// The guidance branches.
    pub fn branches(&self) -> Vec<Branch> {
        let mut branches = Branch::classifier_free(self.text_tokens.len() == 2);
        branches.extend(self.skipping.clone());
        branches
    }

    /// The work that plans are made for.
    pub fn work(&self) -> Work {
        let (spec, branches) = (self.spec.clone(), self.branches());
        Work { spec, tokens: self.tokens(), grain: self.frames, steps: self.steps, branches, images: 1 }
    }

    /// The conditions of the picture.
    pub fn guidance(&self) -> Guidance<Tensor<3>> {
        let text = |branch| random(&format!("text {branch}"), [1, self.text_tokens[branch], TEXT_DIM]);
        let guidance = match self.text_tokens.len() {
            1 => Guidance::none(text(0)),
            _ => Guidance::classifier_free(text(0), text(1), 2.5),
        };
        if self.skipping.is_some() { guidance.skip_layers(1.5) } else { guidance }
    }

    /// The initial latents.
    pub fn noise(&self) -> Tokens {
        let [rows, columns] = self.grid;
        let positions = match self.kind {
            Kind::Clip => Positions::clip(self.frames, rows, columns),
            _ => Positions::grid(rows, columns),
        };
        Tokens { x: random("noise", [1, self.tokens(), self.spec.channels]), positions }
    }

    /// The noise scheduler: [`large_steps`].
    pub fn scheduler(&self) -> Box<dyn Scheduler> {
        large_steps(self.steps)
    }

    /// A rank's share of the model.
    pub fn load(&self, share: &Share) -> Toy {
        Toy::new(self, share)
    }

    /// The job of `plan`.
    pub fn job(&self, plan: Plan) -> Job<Toy> {
        let subject = self.clone();
        Job {
            plan,
            load: Box::new(move |share| Ok(Loaded { transformer: subject.load(&share), parameter_bytes: 0 })),
            scheduler: self.scheduler(),
            guidance: vec![self.guidance()],
            noise: vec![self.noise()],
        }
    }
}

/// A scheduler that keeps earlier predictions, so that mistakes in their order have an effect.
pub fn large_steps(steps: usize) -> Box<dyn Scheduler> {
    let config = json!({
        "_class_name": "DPMSolverMultistepScheduler",
        // Makes all steps large, so that a mistake in any of them has an effect.
        "prediction_type": "v_prediction",
        "timestep_spacing": "trailing",
    });
    scheduler(&config, steps).unwrap()
}

/// Values of unit variance that depend only on `name`.
///
/// # Source
/// FNV-1a for the seed from the name, SplitMix64 for the numbers from the seed.
pub fn random<const D: usize>(name: &str, shape: [usize; D]) -> Tensor<D> {
    let fnv = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let mut state = name.bytes().fold(0xcbf2_9ce4_8422_2325, fnv);
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let uniform = ((z ^ (z >> 31)) >> 40) as f32 / (1 << 24) as f32;
        (2.0 * uniform - 1.0) * 3.0_f32.sqrt()
    };
    tensor((0..shape.iter().product()).map(|_| next()).collect(), shape)
}

fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values, shape), (&device(), DType::F32))
}

/// The transformer: blocks of normalised attention and feed-forward, each shifted by the timestep.
pub struct Toy {
    kind: Kind,
    spec: TransformerSpec,
    image_in: Linear,
    text_in: Linear,
    image_out: Linear,
    /// The blocks of this rank.
    blocks: Vec<Block>,
    first_block: usize,
}

/// The conditions at one timestep.
pub struct Context {
    /// `[1, 1, dim]`
    timestep: Tensor<3>,
    /// The text of each branch, `[1, n, dim]`.
    texts: Vec<Tensor<3>>,
}

impl Toy {
    /// Loads the part of the subject's model in `share`.
    fn new(subject: &Subject, share: &Share) -> Self {
        let (kind, spec) = (subject.kind, subject.spec.clone());
        let whole = Layers { path: "model".into(), tensor: None };
        let block = |index| {
            let layers = Layers { path: format!("block {index}"), tensor: share.tensor.as_ref() };
            Block {
                image: Stream::new(&layers.at("image"), &spec),
                cross: (kind == Kind::Cross).then(|| Projections::new(&layers.at("cross"), &spec)),
                text: (kind == Kind::Joint).then(|| Stream::new(&layers.at("text"), &spec)),
                skip: (spec.skips.iter().any(|[_, to]| *to == index))
                    .then(|| layers.linear("skip", 2 * spec.dim(), spec.dim(), None)),
            }
        };
        Self {
            kind,
            image_in: whole.linear("image in", spec.channels, spec.dim(), None),
            text_in: whole.linear("text in", TEXT_DIM, spec.dim(), None),
            image_out: whole.linear("image out", spec.dim(), spec.channels, None),
            blocks: share.blocks.clone().map(block).collect(),
            first_block: share.blocks.start,
            spec,
        }
    }

    /// Loads the whole model of the subject.
    pub fn whole(subject: &Subject) -> Self {
        Self::new(subject, &Share { blocks: 0..subject.spec.blocks, tensor: None })
    }
}

impl Transformer for Toy {
    /// The text `[1, n, TEXT_DIM]`.
    type Conditions = Tensor<3>;
    type Context = Context;

    fn spec(&self) -> &TransformerSpec {
        &self.spec
    }

    fn dtype(&self) -> DType {
        DType::F32
    }

    fn contexts(&self, texts: &[&Tensor<3>], timesteps: &[f32]) -> Vec<Context> {
        let dim = self.spec.dim();
        let texts: Vec<_> = texts.iter().map(|&text| self.text_in.forward(text.clone())).collect();
        let at = |timestep: &f32| {
            let waves = (0..dim).map(|index| (timestep / 1000.0 * (index + 1) as f32).sin()).collect();
            Context { timestep: tensor(waves, [1, 1, dim]), texts: texts.clone() }
        };
        timesteps.iter().map(at).collect()
    }

    fn context_bytes(&self) -> usize {
        4 * self.spec.dim()
    }

    fn text_shape(&self, context: &Context) -> Option<[usize; 3]> {
        let [_, n, c] = context.texts[0].dims();
        (self.kind == Kind::Joint).then_some([context.texts.len(), n, c])
    }

    fn embed(&self, latents: Tokens, context: &Context) -> Hidden {
        let (dim, ids) = (self.spec.dim(), latents.positions.ids());
        let wave = |[frame, row, column]: [u32; 3], index| {
            ((0.9 * row as f32 + 0.4 * column as f32 + 0.7 * frame as f32) * index as f32).sin()
        };
        let waves = ids.iter().flat_map(|&id| (0..dim).map(move |index| wave(id, index + 1))).collect();
        let x = self.image_in.forward(latents.x.clone()) + tensor(waves, [1, ids.len(), dim]);
        Hidden::new(
            latents.with(x),
            (self.kind == Kind::Joint).then(|| Tensor::cat(context.texts.clone(), 0)),
        )
    }

    fn block(
        &self,
        index: usize,
        hidden: Hidden,
        context: &Context,
        attention: &mut dyn Attention,
    ) -> Hidden {
        let Hidden { mut image, text, mut skips } = hidden;
        let block = &self.blocks[index - self.first_block];
        if let Some(skip) = &block.skip {
            let earlier = skips.remove(&index).expect("the mirror image ran before");
            image = image.with(skip.forward(Tensor::cat(vec![image.x.clone(), earlier], 2)));
        }
        let stream = |stream: &Stream, x: &Tensor<3>| {
            stream.attention.qkv(norm(x.clone() + context.timestep.clone()), self.spec.head_dim)
        };
        let text_qkv = text.as_ref().zip(block.text.as_ref()).map(|(x, of)| stream(of, x));
        let [frames, ..] = image.positions.extent();
        let span = match (self.kind, index % 2) {
            (Kind::Clip, 0) => Span::Frame { frames },
            (Kind::Clip, _) => Span::Place { frames },
            _ => Span::All,
        };
        let site = Site::new(index, 0).within(span);
        let (y, text_y) = attention.attend(site, stream(&block.image, &image.x), text_qkv);

        let mut x = image.x.clone() + block.image.attention.join(y);
        if let Some(cross) = &block.cross {
            let Qkv { q, .. } = cross.qkv(norm(x.clone()), self.spec.head_dim);
            let of_branch = |(branch, text): (usize, &Tensor<3>)| {
                let Qkv { k, v, .. } = cross.qkv(text.clone(), self.spec.head_dim);
                cross_attention(q.clone().narrow(0, branch, 1), k, v, None)
            };
            let y = context.texts.iter().enumerate().map(of_branch).collect();
            x = x + cross.join(Tensor::cat(y, 0));
        }
        let text = text.zip(text_y).zip(block.text.as_ref()).filter(|_| index + 1 < self.spec.blocks);
        let text = text.map(|((x, y), stream)| stream.feed_forward(x + stream.attention.join(y)));
        let x = block.image.feed_forward(x);
        if let Some([_, to]) = self.spec.skips.iter().find(|[from, _]| *from == index) {
            skips.insert(*to, x.clone());
        }
        Hidden { image: image.with(x), text, skips }
    }

    fn finish(&self, hidden: Hidden, _: &Context) -> Tensor<3> {
        self.image_out.forward(norm(hidden.image.x))
    }
}

fn norm(x: Tensor<3>) -> Tensor<3> {
    layer_norm(x, None, None, 1e-5)
}

struct Block {
    image: Stream,
    cross: Option<Projections>,
    text: Option<Stream>,
    skip: Option<Linear>,
}

/// The layers of a block for one stream of tokens.
struct Stream {
    attention: Projections,
    ff: [Linear; 2],
}

impl Stream {
    fn new(layers: &Layers<'_>, spec: &TransformerSpec) -> Self {
        // More features than the heads have, and not a multiple of any other size.
        let (dim, wide) = (spec.dim(), 2 * spec.dim() + 3);
        Self {
            attention: Projections::new(&layers.at("attention"), spec),
            ff: [
                layers.linear("ff in", dim, wide, Some(Placement::Outputs { unit: 1 })),
                layers.linear("ff out", wide, dim, Some(Placement::Inputs { unit: 1 })),
            ],
        }
    }

    fn feed_forward(&self, x: Tensor<3>) -> Tensor<3> {
        let wide = activate(Activation::GeluTanh, self.ff[0].forward(norm(x.clone())));
        x + self.ff[1].forward(wide)
    }
}

/// The linear layers around an attention.
struct Projections {
    qkv: [Linear; 3],
    out: Linear,
}

impl Projections {
    fn new(layers: &Layers<'_>, spec: &TransformerSpec) -> Self {
        let (dim, unit) = (spec.dim(), spec.head_dim);
        Self {
            qkv: ["q", "k", "v"].map(|name| layers.linear(name, dim, dim, Some(Placement::Outputs { unit }))),
            out: layers.linear("out", dim, dim, Some(Placement::Inputs { unit })),
        }
    }

    fn qkv(&self, x: Tensor<3>, head_dim: usize) -> Qkv {
        let [q, k, v] = self.qkv.each_ref().map(|layer| {
            let y = layer.forward(x.clone());
            let [b, n, c] = y.dims();
            y.reshape([b, n, c / head_dim, head_dim])
        });
        Qkv { q, k, v }
    }

    fn join(&self, y: Tensor<4>) -> Tensor<3> {
        let [b, n, h, d] = y.dims();
        self.out.forward(y.reshape([b, n, h * d]))
    }
}

/// Creates the layers below a path.
struct Layers<'a> {
    path: String,
    tensor: Option<&'a TensorShare>,
}

impl Layers<'_> {
    fn at(&self, name: &str) -> Self {
        Self { path: format!("{}, {name}", self.path), ..*self }
    }

    /// This rank's shard of a layer whose weights depend only on its path.
    fn linear(&self, name: &str, c_in: usize, c_out: usize, placement: Option<Placement>) -> Linear {
        let path = format!("{}, {name}", self.path);
        let weight = random(&path, [c_out, c_in]).div_scalar((c_in as f32).sqrt());
        let bias = random(&format!("{path}, bias"), [c_out]).mul_scalar(0.1);
        let rows = |of: Range<usize>| (of.start, of.len());
        match (self.tensor, placement) {
            (Some(share), Some(Placement::Outputs { unit })) => {
                let (start, len) = rows(share.part(c_out, unit));
                Linear::new(weight.narrow(0, start, len), Some(bias.narrow(0, start, len)))
            }
            (Some(share), Some(Placement::Inputs { unit })) => {
                let (start, len) = rows(share.part(c_in, unit));
                Linear::new(weight.narrow(1, start, len), Some(bias)).summed_over(share.link.clone())
            }
            _ => Linear::new(weight, Some(bias)),
        }
    }
}
