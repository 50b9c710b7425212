//! The options of skip-layer guidance.

use xdit_core::pipeline::SkipLayerGuidance;
use xdit_core::{Error, Result};

use crate::args::GenerateArgs;
use crate::parameters::Settings;

/// The skip-layer guidance of `args`, or that of the picture in `--from`.
///
/// # Errors
/// If options of skip-layer guidance are given without layers.
pub fn skip_layers(args: &GenerateArgs, old: Option<&Settings>) -> Result<Option<SkipLayerGuidance>> {
    let layers = match (&args.skip_guidance_layers[..], old) {
        ([], Some(old)) => old.skip_guidance_layers.clone(),
        (layers, _) => layers.to_vec(),
    };
    let (scale, start, stop) =
        (args.skip_layer_guidance_scale, args.skip_layer_guidance_start, args.skip_layer_guidance_stop);
    if layers.is_empty() {
        let given = [("scale", scale.is_some()), ("start", start.is_some()), ("stop", stop.is_some())];
        return match given.iter().find(|(_, given)| *given) {
            Some((name, _)) => {
                Err(Error::usage(format!("`--skip-layer-guidance-{name}` is given, but no layers to skip"))
                    .hint("give them with `--skip-guidance-layers`"))
            }
            None => Ok(None),
        };
    }
    let default = SkipLayerGuidance::new(layers);
    Ok(Some(SkipLayerGuidance {
        scale: scale.or(old.and_then(|old| old.skip_layer_guidance_scale)).unwrap_or(default.scale),
        start: start.or(old.and_then(|old| old.skip_layer_guidance_start)).unwrap_or(default.start),
        stop: stop.or(old.and_then(|old| old.skip_layer_guidance_stop)).unwrap_or(default.stop),
        ..default
    }))
}
