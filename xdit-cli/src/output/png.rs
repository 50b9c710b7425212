//! Pictures as PNG files that contain their parameters.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use xdit_core::pipeline::Picture;
use xdit_core::{Error, Result};

use crate::parameters::Parameters;

/// The text chunk with all parameters, as JSON.
const JSON: &str = "xdit";
/// The text chunk that other programs read.
const INFOTEXT: &str = "parameters";

/// The contents of a PNG file with `picture` and, if given, its parameters.
pub fn encode_png(picture: &Picture, parameters: Option<&Parameters>) -> Vec<u8> {
    let texts = parameters.map(|parameters| {
        let json = serde_json::to_string(parameters).expect("strings and finite numbers can be serialized");
        [(INFOTEXT, parameters.infotext()), (JSON, json)]
    });
    let mut bytes = Vec::new();
    write(picture, texts.into_iter().flatten(), &mut bytes)
        .expect("a picture of valid size can be written to memory");
    bytes
}

fn write(
    picture: &Picture,
    texts: impl IntoIterator<Item = (&'static str, String)>,
    bytes: &mut Vec<u8>,
) -> Result<(), png::EncodingError> {
    let mut encoder = png::Encoder::new(bytes, picture.width as u32, picture.height as u32);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_source_srgb(png::SrgbRenderingIntent::Perceptual);
    for (keyword, text) in texts {
        // More programs read the older chunk, but it is limited to Latin-1.
        if text.chars().all(|char| u32::from(char) < 0x100) {
            encoder.add_text_chunk(keyword.to_owned(), text)?;
        } else {
            encoder.add_itxt_chunk(keyword.to_owned(), text)?;
        }
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&picture.rgb)?;
    writer.finish()
}

/// Reads the parameters from the PNG file `path`.
///
/// # Errors
/// If the file cannot be read or contains no parameters.
pub fn read_parameters(path: &Path) -> Result<Parameters> {
    let shown = path.display();
    let file = File::open(path).map_err(|error| Error::failure(format!("cannot read `{shown}`: {error}")))?;
    let reader = png::Decoder::new(BufReader::new(file))
        .read_info()
        .map_err(|error| Error::failure(format!("`{shown}` is not a valid PNG file: {error}")))?;
    let info = reader.info();
    let latin1 = info.uncompressed_latin1_text.iter().find(|chunk| chunk.keyword == JSON);
    let utf8 = info.utf8_text.iter().find(|chunk| chunk.keyword == JSON);
    let json = match (latin1, utf8) {
        (Some(chunk), _) => chunk.text.clone(),
        (None, Some(chunk)) => chunk
            .get_text()
            .map_err(|error| Error::failure(format!("the parameters in `{shown}` are corrupt: {error}")))?,
        (None, None) => {
            return Err(Error::usage(format!("`{shown}` contains no parameters of this program"))
                .hint("give a picture written by `xdit generate` that no other program has saved since"));
        }
    };
    serde_json::from_str(&json)
        .map_err(|error| Error::failure(format!("the parameters in `{shown}` are corrupt: {error}")))
}
