//! Pictures in the terminal, if it is one that shows them: by the protocols of kitty and iTerm2, or as sixels.
//!
//! The terminal is known by the variables that it sets. It is not asked, because an answer would have to be read from the
//! keyboard's input. Inside tmux and screen there are no pictures.
//!
//! # Source
//! kitty's "Terminal graphics protocol", iTerm2's "Inline Images Protocol", and DEC's "VT330/VT340 Programmer Reference
//! Manual", chapter 14, for sixels.

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use xdit_core::pipeline::Picture;

use crate::args::OutputType;
use crate::output::{FRAMES_PER_SECOND, encode};

/// The height of a picture in lines of text.
const LINES: usize = 14;
/// The height of a picture of sixels in pixels. They are not scaled by the terminal.
const SIXEL_HEIGHT: usize = 240;
/// The most bytes of base64 in one sequence of kitty's protocol.
const KITTY_CHUNK: usize = 4096;
/// The levels of red, green and blue in a picture of sixels; their product is the number of colours.
const LEVELS: [usize; 3] = [6, 7, 6];

/// The way in which a terminal shows pictures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Graphics {
    /// kitty's protocol.
    Kitty,
    /// iTerm2's protocol.
    Iterm2,
    /// Sixels.
    Sixel,
}

impl Graphics {
    /// The way of the terminal with these environment variables, if it has one.
    pub fn of(lookup: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let value = |name: &str| lookup(name).unwrap_or_default();
        let (term, program) = (value("TERM"), value("TERM_PROGRAM"));
        if lookup("TMUX").is_some() || term.starts_with("screen") || term.starts_with("tmux") {
            return None;
        }
        if term == "xterm-kitty" || term == "xterm-ghostty" || program == "ghostty" {
            return Some(Self::Kitty);
        }
        if ["iTerm.app", "WezTerm", "mintty"].contains(&&*program) || value("LC_TERMINAL") == "iTerm2" {
            return Some(Self::Iterm2);
        }
        let sixel = term.starts_with("foot") || term.starts_with("mlterm") || term.contains("sixel");
        sixel.then_some(Self::Sixel)
    }

    /// The characters that show `picture` at the cursor.
    pub fn show(self, picture: &Picture) -> String {
        let png = || {
            STANDARD.encode(encode(OutputType::Png, std::slice::from_ref(picture), FRAMES_PER_SECOND, None))
        };
        match self {
            Self::Kitty => kitty(&png()),
            Self::Iterm2 => {
                format!("\x1b]1337;File=inline=1;height={LINES};preserveAspectRatio=1:{}\x07", png())
            }
            Self::Sixel => sixel(&shrunk(picture, SIXEL_HEIGHT)),
        }
    }
}

/// A PNG file in kitty's protocol: transmit and display (`a=T`), without an answer (`q=2`).
fn kitty(png: &str) -> String {
    let mut text = String::new();
    let mut rest = png;
    while !rest.is_empty() || text.is_empty() {
        let (chunk, behind) = rest.split_at(rest.len().min(KITTY_CHUNK));
        let more = u8::from(!behind.is_empty());
        let first = if text.is_empty() { format!("a=T,f=100,q=2,r={LINES},") } else { String::new() };
        // Writing to a string does not fail.
        let _ = write!(text, "\x1b_G{first}m={more};{chunk}\x1b\\");
        rest = behind;
    }
    text
}

/// `picture` with every n-th row and column, so that it has at most `height` rows.
fn shrunk(picture: &Picture, height: usize) -> Picture {
    let step = picture.height.div_ceil(height).max(1);
    let rows = (0..picture.height).step_by(step);
    let columns = || (0..picture.width).step_by(step);
    let pixel = |row: usize, column: usize| &picture.rgb[3 * (row * picture.width + column)..][..3];
    Picture {
        width: columns().count(),
        height: rows.clone().count(),
        rgb: rows.flat_map(|row| columns().flat_map(move |column| pixel(row, column)).copied()).collect(),
    }
}

/// A picture of sixels, in colours of [`LEVELS`], with ordered dithering.
fn sixel(picture: &Picture) -> String {
    // A 4×4 threshold matrix (Bayer).
    const BAYER: [[usize; 4]; 4] = [[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]];
    let Picture { width, height, rgb } = picture;
    let level = |value: u8, levels: usize, threshold: f32| {
        let exact = f32::from(value) / 255.0 * (levels - 1) as f32;
        ((exact + threshold) as usize).min(levels - 1)
    };
    let colour = |row: usize, column: usize| {
        let threshold = (BAYER[row % 4][column % 4] as f32 + 0.5) / 16.0;
        let pixel = &rgb[3 * (row * width + column)..][..3];
        (0..3).fold(0, |colour, i| colour * LEVELS[i] + level(pixel[i], LEVELS[i], threshold))
    };
    let colours: Vec<usize> = (0..width * height).map(|at| colour(at / width, at % width)).collect();
    let mut text = format!("\x1bPq\"1;1;{width};{height}");
    let mut known = vec![false; LEVELS.iter().product()];
    for (band, rows) in colours.chunks(6 * width).enumerate() {
        if band > 0 {
            text.push('-');
        }
        let mut present: Vec<usize> = rows.to_vec();
        present.sort_unstable();
        present.dedup();
        for (index, colour) in present.into_iter().enumerate() {
            if index > 0 {
                text.push('$');
            }
            if !std::mem::replace(&mut known[colour], true) {
                let levels =
                    [colour / (LEVELS[1] * LEVELS[2]), colour / LEVELS[2] % LEVELS[1], colour % LEVELS[2]];
                let percent = |i: usize| 100 * levels[i] / (LEVELS[i] - 1);
                let _ = write!(text, "#{colour};2;{};{};{}", percent(0), percent(1), percent(2));
            }
            let _ = write!(text, "#{colour}");
            let mut columns = (0..*width).map(|column| {
                let bit = |row: usize| usize::from(rows.get(row * width + column) == Some(&colour)) << row;
                char::from(b'?' + (0..6).map(bit).sum::<usize>() as u8)
            });
            let mut run = columns.next().map(|sixel| (sixel, 1));
            for sixel in columns.map(Some).chain([None]) {
                match (&mut run, sixel) {
                    (Some((last, count)), Some(sixel)) if *last == sixel => *count += 1,
                    _ => {
                        if let Some((last, count)) = run {
                            let _ = write!(text, "!{count}{last}");
                        }
                        run = sixel.map(|sixel| (sixel, 1));
                    }
                }
            }
        }
    }
    text + "\x1b\\"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminals_are_known_by_their_variables() {
        let of = |pairs: &[(&str, &str)]| {
            Graphics::of(|name| {
                pairs.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
            })
        };
        assert_eq!(of(&[("TERM", "xterm-256color")]), None);
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[("TERM", "xterm-kitty")]), Some(Graphics::Kitty));
        assert_eq!(of(&[("TERM", "xterm-kitty"), ("TMUX", "/tmp/x")]), None);
        assert_eq!(of(&[("TERM", "screen-256color"), ("TERM_PROGRAM", "WezTerm")]), None);
        assert_eq!(of(&[("TERM", "xterm"), ("TERM_PROGRAM", "iTerm.app")]), Some(Graphics::Iterm2));
        assert_eq!(of(&[("TERM", "foot-extra")]), Some(Graphics::Sixel));
    }

    fn picture(width: usize, height: usize) -> Picture {
        let rgb = (0..width * height).flat_map(|at| [at as u8, (at / width * 9) as u8, 255]).collect();
        Picture { width, height, rgb }
    }

    /// The protocols of kitty and iTerm2 carry the PNG file of the picture.
    #[test]
    fn the_png_file_arrives() {
        // Noise, which takes several sequences.
        let noise = xdit_core::noise::Generator::from_seed(0).randn(90 * 80 * 3);
        let rgb = noise.into_iter().map(|value| (value * 60.0 + 128.0) as u8).collect();
        let picture = Picture { width: 90, height: 80, rgb };
        let png = encode(OutputType::Png, std::slice::from_ref(&picture), FRAMES_PER_SECOND, None);
        let kitty = Graphics::Kitty.show(&picture);
        let chunks: Vec<&str> = kitty.split("\x1b_G").skip(1).collect();
        assert!(chunks.len() > 1 && chunks[0].starts_with("a=T,f=100,q=2,r=14,m=1;"), "{}", chunks[0]);
        assert!(chunks.last().unwrap().starts_with("m=0;"));
        let data: String = chunks
            .iter()
            .map(|chunk| chunk.strip_suffix("\x1b\\").unwrap().split_once(';').unwrap().1)
            .collect();
        assert_eq!(STANDARD.decode(data).unwrap(), png);
        let iterm = Graphics::Iterm2.show(&picture);
        let data = iterm.strip_suffix('\x07').unwrap().split_once(':').unwrap().1;
        assert_eq!(STANDARD.decode(data).unwrap(), png);
    }

    /// Reads a picture of sixels: the colour of each pixel in percent.
    fn read_sixels(text: &str, width: usize, height: usize) -> Vec<[usize; 3]> {
        let text = text
            .strip_prefix(&format!("\x1bPq\"1;1;{width};{height}"))
            .unwrap()
            .strip_suffix("\x1b\\")
            .unwrap();
        let (mut colours, mut pixels) =
            (std::collections::HashMap::new(), vec![[usize::MAX; 3]; width * height]);
        let (mut band, mut column, mut colour, mut rest) = (0, 0, 0, text);
        let number = |rest: &mut &str| {
            let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
            let (digits, behind) = rest.split_at(end);
            *rest = behind;
            digits.parse::<usize>().unwrap()
        };
        while let Some(first) = rest.chars().next() {
            rest = &rest[1..];
            match first {
                '-' => (band, column) = (band + 1, 0),
                '$' => column = 0,
                '#' => {
                    colour = number(&mut rest);
                    if let Some(behind) = rest.strip_prefix(";2;") {
                        rest = behind;
                        let mut levels = [0; 3];
                        for level in &mut levels {
                            *level = number(&mut rest);
                            rest = rest.strip_prefix(';').unwrap_or(rest);
                        }
                        colours.insert(colour, levels);
                    }
                }
                '!' => {
                    let count = number(&mut rest);
                    let sixel = rest.as_bytes()[0] - b'?';
                    rest = &rest[1..];
                    for column in column..column + count {
                        for row in (0..6).filter(|row| sixel >> row & 1 == 1) {
                            pixels[(6 * band + row) * width + column] = colours[&colour];
                        }
                    }
                    column += count;
                }
                other => panic!("{other}"),
            }
        }
        pixels
    }

    #[test]
    fn sixels_have_the_colours_of_the_picture() {
        // Neither side is a multiple of six.
        let picture = picture(31, 20);
        let pixels = read_sixels(&sixel(&picture), 31, 20);
        // The mean of each block of 4×4 pixels, over which dithering averages out.
        for (row, column) in (0..5).flat_map(|row| (0..7).map(move |column| (4 * row, 4 * column))) {
            for channel in 0..3 {
                let block = (0..16).map(|at| (row + at / 4) * 31 + column + at % 4);
                let shown = block.clone().map(|at| pixels[at][channel] as f64 / 100.0).sum::<f64>() / 16.0;
                let real =
                    block.map(|at| f64::from(picture.rgb[3 * at + channel]) / 255.0).sum::<f64>() / 16.0;
                assert!((shown - real).abs() < 0.05, "{row} {column} {channel}: {shown} for {real}");
            }
        }
        assert_eq!(shrunk(&self::picture(700, 481), 240).height, 161);
    }
}
