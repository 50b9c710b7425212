//! Pictures as PNG files that carry their parameters.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use xdit_core::pipeline::Picture;
use xdit_core::{Error, Result};

use crate::parameters::Parameters;

/// The chunk with all parameters, as JSON.
const JSON: &str = "xdit";
/// The chunk that other programs read.
const INFOTEXT: &str = "parameters";

/// The bytes of a PNG file with `picture` and how it was made.
pub fn encode_png(picture: &Picture, parameters: &Parameters) -> Vec<u8> {
    let json = serde_json::to_string(parameters).expect("strings and finite numbers");
    let mut bytes = Vec::new();
    write(picture, [(INFOTEXT, parameters.infotext()), (JSON, json)], &mut bytes)
        .expect("a picture of valid size is written to memory");
    bytes
}

fn write(
    picture: &Picture,
    texts: [(&str, String); 2],
    bytes: &mut Vec<u8>,
) -> Result<(), png::EncodingError> {
    let mut encoder = png::Encoder::new(bytes, picture.width as u32, picture.height as u32);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_source_srgb(png::SrgbRenderingIntent::Perceptual);
    for (keyword, text) in texts {
        // The older chunk is read by more programs, but holds only Latin-1.
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

/// The parameters in the PNG file `path`.
///
/// # Errors
/// If it cannot be read or carries none.
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
            .map_err(|error| Error::failure(format!("the parameters in `{shown}` are damaged: {error}")))?,
        (None, None) => {
            return Err(Error::usage(format!("`{shown}` carries no parameters of this program"))
                .hint("only pictures of `xdit generate` do, and only until another program saves them"));
        }
    };
    serde_json::from_str(&json)
        .map_err(|error| Error::failure(format!("the parameters in `{shown}` are damaged: {error}")))
}
