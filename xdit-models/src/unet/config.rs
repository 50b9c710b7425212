//! The options of `unet/config.json`.

use serde_json::{Value, json};
use xdit_core::config::Config;
use xdit_core::transformer::TransformerSpec;
use xdit_core::{Error, Result};

use crate::latent_diffusion::{SAMPLE_SIZES, TransformerConfig};

/// The options of `unet/config.json`.
#[derive(Clone, Debug)]
pub struct UNetConfig {
    /// The sizes that the engine needs. The model is one block. Heads are those of the level with the fewest.
    pub spec: TransformerSpec,
    /// The side, in latent pixels, of the images that the model was trained on.
    pub sample_size: usize,
    /// The levels, from the latent inwards. Each has half of the rows and columns of the one before.
    pub levels: Vec<Level>,
    /// The number of residual blocks of a level on the way in; on the way out there is one more.
    pub layers_per_block: usize,
    /// The number of groups of every group norm.
    pub norm_num_groups: usize,
    /// The ε of the group norms of residual blocks.
    pub norm_eps: f64,
    /// The number of features of a text token.
    pub cross_attention_dim: usize,
    /// Whether the projections around attention are linear layers, or convolutions of single pixels, which are the same
    /// but for their shape.
    pub use_linear_projection: bool,
    /// The width of the sinusoids of each number of the micro-conditions.
    pub addition_time_embed_dim: usize,
    /// The number of features of the pooled text and the embedded micro-conditions together.
    pub projection_class_embeddings_input_dim: usize,
}

/// A level of resolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level {
    /// The number of channels.
    pub channels: usize,
    /// The number of attention heads.
    pub heads: usize,
    /// The number of layers of each transformer on the way in; 0 if there is none.
    pub down: usize,
    /// The number of layers of each transformer on the way out; 0 if there is none.
    pub up: usize,
    /// The number of layers that a transformer of this level has, if there is one.
    pub layers: usize,
}

impl Level {
    /// The number of features of a head.
    pub fn head_dim(&self) -> usize {
        self.channels / self.heads
    }
}

/// The number of numbers in the micro-conditions: the original size, the place of the crop, and the target size.
pub const MICRO_CONDITIONS: usize = 6;

impl UNetConfig {
    /// The number of features of the embedded timestep.
    pub fn time_embed_dim(&self) -> usize {
        4 * self.levels[0].channels
    }

    /// The number of features of the pooled text.
    pub fn pooled_dim(&self) -> usize {
        self.projection_class_embeddings_input_dim - MICRO_CONDITIONS * self.addition_time_embed_dim
    }

    /// The number of rows of the latent that become one row of the innermost level.
    pub fn row_grain(&self) -> usize {
        1 << (self.levels.len() - 1)
    }
}

impl TransformerConfig for UNetConfig {
    fn read(mut config: Config) -> Result<Self> {
        supported_only(&mut config)?;
        let channels: Vec<usize> = config.take("block_out_channels", vec![320, 640, 1280, 1280])?;
        let count = channels.len();
        let cross = |name: &str, types: Vec<String>| -> Result<Vec<bool>> {
            let known = ["DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"];
            let fits = |kind: &String| known.contains(&kind.as_str()) && kind.contains(name);
            if types.len() == count && types.iter().all(fits) {
                return Ok(types.iter().map(|kind| kind.starts_with("CrossAttn")).collect());
            }
            Err(Error::failure(format!("a UNet of {count} levels cannot have the blocks `{types:?}`"))
                .hint(format!("supported: `{name}Block2D` and `CrossAttn{name}Block2D`, one for each level")))
        };
        let down = cross("Down", config.require("down_block_types")?)?;
        let up = cross("Up", config.require("up_block_types")?)?;
        let layers = per_level(&mut config, "transformer_layers_per_block", 1, count)?;
        // The option's name is a mistake of the reference: it is the number of heads.
        let heads = per_level(&mut config, "attention_head_dim", 8, count)?;
        let level = |index: usize| {
            let (channels, heads) = (channels[index], heads[index]);
            let layers = layers[index];
            let of = |attends: bool| if attends { layers } else { 0 };
            Level { channels, heads, down: of(down[index]), up: of(up[count - 1 - index]), layers }
        };
        let levels: Vec<_> = (0..count).map(level).collect();
        let in_channels: usize = config.take("in_channels", 4)?;
        config.only("out_channels", &[json!(in_channels)])?;
        let layers_per_block = per_level(&mut config, "layers_per_block", 2, count)?;
        let [first, rest @ ..] = &layers_per_block[..] else {
            return Err(Error::failure("a UNet cannot have no levels"));
        };
        if *first == 0 || rest.iter().any(|layers| layers != first) {
            return Err(Error::failure(format!(
                "a UNet with `{layers_per_block:?}` layers in its levels is not supported"
            ))
            .hint("supported: the same positive number in each"));
        }
        let this = Self {
            spec: spec(&levels, in_channels)?,
            sample_size: config.within("sample_size", 128, SAMPLE_SIZES)?,
            layers_per_block: *first,
            norm_num_groups: config.take("norm_num_groups", 32)?,
            norm_eps: config.take("norm_eps", 1e-5)?,
            cross_attention_dim: config.take("cross_attention_dim", 1280)?,
            use_linear_projection: config.take("use_linear_projection", false)?,
            addition_time_embed_dim: config.require("addition_time_embed_dim")?,
            projection_class_embeddings_input_dim: config.require("projection_class_embeddings_input_dim")?,
            levels,
        };
        this.check()?;
        config.finish()?;
        Ok(this)
    }

    fn spec(&self) -> &TransformerSpec {
        &self.spec
    }

    /// Whole rows, as many as become one row of the innermost level. If rows are left over, the picture stays whole.
    fn grain(&self, [_, rows, columns]: [usize; 3]) -> usize {
        let grain = if rows.is_multiple_of(self.row_grain()) { self.row_grain() } else { rows };
        grain * columns
    }
}

impl UNetConfig {
    fn check(&self) -> Result<()> {
        let groups = self.norm_num_groups;
        let divides =
            |level: &Level| groups > 0 && level.channels > 0 && level.channels.is_multiple_of(groups);
        if !self.levels.iter().all(divides) || !self.levels[0].channels.is_multiple_of(2) {
            let channels: Vec<_> = self.levels.iter().map(|level| level.channels).collect();
            return Err(Error::failure(format!(
                "the UNet's `block_out_channels` `{channels:?}` cannot be divided into `{groups}` groups"
            )));
        }
        let (width, all) = (self.addition_time_embed_dim, self.projection_class_embeddings_input_dim);
        let embedded = width.saturating_mul(MICRO_CONDITIONS);
        if width == 0 || !width.is_multiple_of(2) || embedded >= all || self.cross_attention_dim == 0 {
            return Err(Error::failure(format!(
                "a UNet cannot have `addition_time_embed_dim` {width}, `projection_class_embeddings_input_dim` {all} \
                 and `cross_attention_dim` {}",
                self.cross_attention_dim
            ))
            .hint("the second is that of the pooled text and six times the first"));
        }
        Ok(())
    }
}

/// A limit that no real model reaches.
const MAX_LEVELS: usize = 16;
/// A limit that no real model reaches.
const MAX_LAYERS: usize = 1024;

/// The sizes of a UNet as those of a transformer of one block, whose tokens are the pixels of the latent.
fn spec(levels: &[Level], channels: usize) -> Result<TransformerSpec> {
    let last = levels.len() - 1;
    let sound = |level: &Level| {
        level.heads > 0
            && level.channels.is_multiple_of(level.heads)
            && (1..=MAX_LAYERS).contains(&level.layers)
    };
    let attends = |&(index, level): &(usize, &Level)| level.down + level.up > 0 || index == last;
    let attending = || levels.iter().enumerate().filter(attends).map(|(_, level)| level);
    if levels.len() > MAX_LEVELS || !attending().all(sound) {
        return Err(Error::failure(format!("a UNet cannot have levels with these sizes: {levels:?}"))
            .hint("`attention_head_dim` is the number of heads, which must divide `block_out_channels`"));
    }
    let fewest = attending().min_by_key(|level| level.heads).expect("the innermost level attends");
    Ok(TransformerSpec {
        patch: 1,
        channels,
        blocks: 1,
        heads: fewest.heads,
        head_dim: fewest.head_dim(),
        skips: Vec::new(),
        block_parameters: Vec::new(),
    })
}

/// Takes the options that have a single supported value.
fn supported_only(config: &mut Config) -> Result<()> {
    let kind: String = config.require("addition_embed_type")?;
    if kind != "text_time" {
        return Err(Error::failure(format!("option `addition_embed_type` = `{kind}` is not supported"))
            .hint("supported: `text_time`"));
    }
    for (name, supported) in [
        ("act_fn", json!("silu")),
        ("attention_type", json!("default")),
        ("center_input_sample", json!(false)),
        ("class_embeddings_concat", json!(false)),
        ("conv_in_kernel", json!(3)),
        ("conv_out_kernel", json!(3)),
        ("downsample_padding", json!(1)),
        ("dual_cross_attention", json!(false)),
        ("flip_sin_to_cos", json!(true)),
        ("freq_shift", json!(0)),
        ("mid_block_only_cross_attention", json!(false)),
        ("mid_block_type", json!("UNetMidBlock2DCrossAttn")),
        ("only_cross_attention", json!(false)),
        ("resnet_skip_time_act", json!(false)),
        ("resnet_time_scale_shift", json!("default")),
        ("time_embedding_type", json!("positional")),
        // In f32, where it is meant to help, it has no effect; softmax is in f32 anyway.
        ("upcast_attention", json!(false)),
    ] {
        config.only(name, &[supported])?;
    }
    for name in ["mid_block_scale_factor", "resnet_out_scale_factor"] {
        config.only(name, &[json!(1), json!(1.0)])?;
    }
    for name in [
        "class_embed_type",
        "cross_attention_norm",
        "encoder_hid_dim",
        "encoder_hid_dim_type",
        "num_attention_heads",
        "num_class_embeds",
        "reverse_transformer_layers_per_block",
        "time_cond_proj_dim",
        "time_embedding_act_fn",
        "time_embedding_dim",
        "timestep_post_act",
    ] {
        config.only(name, &[])?;
    }
    // Of an additional embedding of another type, and of training.
    config.inert(&["addition_embed_type_num_heads", "dropout"]);
    Ok(())
}

/// An option that is a number for each level, or one for all.
fn per_level(config: &mut Config, name: &str, default: usize, count: usize) -> Result<Vec<usize>> {
    let value: Value = config.take(name, json!(default))?;
    let number = |value: &Value| value.as_u64().and_then(|number| usize::try_from(number).ok());
    let numbers = match &value {
        Value::Array(numbers) => numbers.iter().map(number).collect(),
        one => number(one).map(|number| vec![number; count]),
    };
    numbers.filter(|numbers: &Vec<_>| numbers.len() == count).ok_or_else(|| {
        Error::failure(format!("option `{name}` = `{value}` is not supported"))
            .hint(format!("supported: a number, or one for each of the {count} levels"))
    })
}
