//! Clips: their options, and the files that hold them.

use std::fs;
use std::io::Cursor;
use std::net::TcpListener;
use std::path::Path;

use shiguredo_mp4::demux::{Input, Mp4FileDemuxer};

use crate::workspace::{Workspace, pixels};

/// The small checkpoint of Latte, whose autoencoder decodes frames together, makes clips of four frames.
fn workspace() -> Workspace {
    let workspace = Workspace::new();
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens");
    for name in ["latte", "latte-temporal"] {
        copy(&goldens.join(name), &workspace.path(name));
    }
    workspace
}

/// Copies a folder, with what its links lead to.
fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(fs::copy(entry.path(), to).unwrap()),
        }
    }
}

/// A run of a few short steps.
const RUN: [&str; 12] = [
    "generate",
    "--model",
    "latte-temporal",
    "--prompt",
    "ein 🦊",
    "--height",
    "24",
    "--width",
    "32",
    "--num-inference-steps",
    "2",
    "--quiet",
];

fn run(workspace: &Workspace, further: &[&str]) -> String {
    workspace.ok(&[&RUN[..], further].concat())
}

/// The frames of an animated PNG file, and the time of each in seconds.
fn frames_of_png(path: &Path) -> (Vec<Vec<u8>>, f64) {
    let mut reader = png::Decoder::new(Cursor::new(fs::read(path).unwrap())).read_info().unwrap();
    let count = reader.info().animation_control.unwrap().num_frames;
    let mut frames = Vec::new();
    for _ in 0..count {
        let mut rgb = vec![0; reader.output_buffer_size().unwrap()];
        reader.next_frame(&mut rgb).unwrap();
        frames.push(rgb);
    }
    let control = reader.info().frame_control.unwrap();
    (frames, f64::from(control.delay_num) / f64::from(control.delay_den))
}

/// Every format holds the frames of the clip and its parameters, from which each of the others can be made.
#[test]
fn every_format_holds_the_clip() {
    let workspace = workspace();
    assert_eq!(run(&workspace, &["--fps", "12.5", "--output", "a.png"]), "a.png\n");
    let (frames, seconds) = frames_of_png(&workspace.path("a.png"));
    assert_eq!((frames.len(), seconds), (4, 0.08));
    assert!(frames.windows(2).all(|pair| pair[0] != pair[1]));

    for name in ["a.webp", "a.gif", "a.mp4"] {
        let again = ["generate", "--model", "latte-temporal", "--from", "a.png", "--quiet", "--output", name];
        assert_eq!(workspace.ok(&again), format!("{name}\n"));
        let back = ["generate", "--model", "latte-temporal", "--from", name, "--quiet", "--output", "b.png"];
        workspace.ok(&back);
        let [first, second] = ["a.png", "b.png"].map(|name| fs::read(workspace.path(name)).unwrap());
        assert_eq!(first, second, "{name}");
        let shown = workspace.ok(&["inspect", name]);
        assert!(shown.contains("ein 🦊\n") && shown.contains("\nnum-frames "), "{shown}");
        assert!(shown.contains(&format!("again: xdit generate --from {name}\n")), "{shown}");
    }

    let webp = fs::read(workspace.path("a.webp")).unwrap();
    let mut decoder = image_webp::WebPDecoder::new(Cursor::new(webp)).unwrap();
    assert_eq!((decoder.dimensions(), decoder.num_frames()), ((32, 24), 4));
    for frame in &frames {
        let mut rgb = vec![0; frame.len()];
        assert_eq!(decoder.read_frame(&mut rgb).unwrap(), 80);
        assert!(rgb == *frame, "WebP has no loss");
    }

    let mut options = gif::DecodeOptions::new();
    options.set_color_output(gif::ColorOutput::RGBA);
    let mut decoder = options.read_info(Cursor::new(fs::read(workspace.path("a.gif")).unwrap())).unwrap();
    for (index, frame) in frames.iter().enumerate() {
        let read = decoder.read_next_frame().unwrap().unwrap();
        assert_eq!((read.width, read.height, read.delay), (32, 24, 8));
        let distance = |frame: &[u8]| -> u32 {
            let apart = |(rgb, rgba): (&[u8], &[u8])| -> u32 {
                rgb.iter().zip(rgba).map(|(a, b)| u32::from(a.abs_diff(*b))).sum()
            };
            frame.chunks(3).zip(read.buffer.chunks(4)).map(apart).sum()
        };
        // Of a picture that is nearly noise, 256 colours are some levels off.
        let nearest_other =
            (0..4).filter(|other| *other != index).map(|other| distance(&frames[other])).min();
        assert!(3 * distance(frame) < nearest_other.unwrap(), "frame {index}");
    }
    assert!(decoder.read_next_frame().unwrap().is_none());

    let mp4 = fs::read(workspace.path("a.mp4")).unwrap();
    let mut demuxer = Mp4FileDemuxer::new();
    demuxer.handle_input(Input { position: 0, data: &mp4 });
    let mut times = Vec::new();
    while let Some(sample) = demuxer.next_sample().unwrap() {
        times.push((sample.timestamp, sample.duration, sample.track.timescale.get()));
    }
    assert_eq!(times, [0, 1000, 2000, 3000].map(|time| (time, 1000, 12_500)));
}

/// `{frame}` in the path gives each frame a file with the parameters of the clip.
#[test]
fn frames_have_files_of_their_own() {
    let workspace = workspace();
    fs::create_dir(workspace.path("frames")).unwrap();
    run(&workspace, &["--output", "clip.png", "--num-images", "2", "--num-frames", "3"]);
    let out = run(
        &workspace,
        &["--output", "frames/{i}-{frame}.png", "--num-images", "2", "--num-frames", "3", "--preview", "1"],
    );
    let names = ["0-0", "0-1", "0-2", "1-0", "1-1", "1-2"].map(|name| format!("frames/{name}.png"));
    assert_eq!(out, names.join("\n") + "\n");
    assert_eq!(fs::read_dir(workspace.path("frames")).unwrap().count(), 6, "previews are gone");
    for clip in 0..2 {
        let (frames, _) = frames_of_png(&workspace.path(&format!("clip-{clip}.png")));
        for (frame, expected) in frames.iter().enumerate() {
            let (_, _, rgb) = pixels(&workspace.path(&format!("frames/{clip}-{frame}.png")));
            assert!(rgb == *expected, "clip {clip}, frame {frame}");
        }
    }
    let shown = workspace.ok(&["inspect", "frames/1-2.png", "--json"]);
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!((&shown["num_frames"], &shown["seed"], &shown["fps"]), (&3.into(), &1.into(), &8.0.into()));
    assert_eq!(run(&workspace, &["--output", "{frame}.jpg", "--num-frames", "1"]), "0.jpg\n");

    // Latents of a clip are decoded to the same files.
    run(&workspace, &["--output", "clip.safetensors", "--num-frames", "3"]);
    let decode = ["decode", "clip.safetensors", "--model", "latte-temporal", "--quiet", "--output"];
    let out = workspace.ok(&[&decode[..], &["again-{frame}.png"]].concat());
    assert_eq!(out, "again-0.png\nagain-1.png\nagain-2.png\n");
    for frame in 0..3 {
        assert_eq!(
            pixels(&workspace.path(&format!("again-{frame}.png"))),
            pixels(&workspace.path(&format!("frames/0-{frame}.png")))
        );
    }
    workspace.ok(&[&decode[..], &["again.png", "--fps", "2"]].concat());
    let (whole, seconds) = frames_of_png(&workspace.path("again.png"));
    assert_eq!((whole.len(), seconds), (3, 0.5));
    workspace.ok(&[&decode[..], &["chunks.png", "--decode-chunk-size", "1"]].concat());
    let (each, _) = frames_of_png(&workspace.path("chunks.png"));
    assert!(each != whole, "the frames of a chunk are decoded together");
}

/// Options change the clip, or are refused where there is none.
#[test]
fn options_of_clips() {
    let workspace = workspace();
    let clip = |name: &str, further: &[&str]| {
        run(&workspace, &[&["--output", name], further].concat());
        frames_of_png(&workspace.path(name)).0
    };
    let whole = clip("whole.png", &[]);
    assert_ne!(clip("alone.png", &["--no-enable-temporal-attentions"]), whole);
    assert_ne!(clip("chunks.png", &["--decode-chunk-size", "2"]), whole);
    assert_eq!(clip("same.png", &["--video-length", "4", "--decode-chunk-size", "14"]), whole);
    let from = ["generate", "--model", "latte-temporal", "--quiet", "--output", "b.png", "--from"];
    for name in ["alone.png", "chunks.png"] {
        workspace.ok(&[&from[..], &[name]].concat());
        assert_eq!(frames_of_png(&workspace.path("b.png")), frames_of_png(&workspace.path(name)));
    }
    let back = ["alone.png", "--no-enable-temporal-attentions=false"];
    workspace.ok(&[&from[..], &back].concat());
    assert_eq!(frames_of_png(&workspace.path("b.png")).0, whole);

    let error = |further: &[&str]| workspace.error(&[&RUN[..], further].concat());
    insta::assert_snapshot!(error(&["--output", "a.jpg"]), @r"
    2
    error: a JPEG file holds one picture, not a clip of `4` frames
    hint: name a file for each frame with `{frame}` in the path, or write a clip as `.png`, `.webp`, `.gif` or `.mp4`
    ");
    insta::assert_snapshot!(error(&["--output", "{frame}.gif"]), @r"
    2
    error: a GIF file holds a clip, and this is one picture
    hint: write pictures, and the frames of a clip, as PNG, JPEG or WebP
    ");
    insta::assert_snapshot!(error(&["--output", "a.mp4", "--num-frames", "1"]), @r"
    2
    error: an MP4 file holds a clip, and this is one picture
    hint: write pictures, and the frames of a clip, as PNG, JPEG or WebP
    ");
    insta::assert_snapshot!(error(&["--output", "{frame}.safetensors"]), @r"
    2
    error: output `{frame}.safetensors` names a file for each frame
    hint: leave out `{frame}`: the latents of all frames share one file
    ");
    insta::assert_snapshot!(error(&["--num-frames", "5"]), @r"
    2
    error: `5` frames are not between 1 and 4
    hint: the model was trained on clips of that length
    ");
    insta::assert_snapshot!(error(&["--fps", "-1"]), @r"
    2
    error: `-1` frames per second are not between 0.01 and 1000
    hint: models make clips for about 8 frames per second
    ");
    insta::assert_snapshot!(error(&["--decode-chunk-size", "0"]), @r"
    2
    error: `0` frames decoded together leave nothing to do
    hint: decode at least 1
    ");
    let picture = |further: &[&str]| {
        Workspace::with_demo().error(&[&["generate", "--model", "demo", "--prompt", "a"], further].concat())
    };
    insta::assert_snapshot!(picture(&["--fps", "8"]), @r"
    2
    error: PixArt does not take `fps`
    hint: leave it out; of the options that not all models have, it takes `negative_prompt`, `max_sequence_length`, `clean_caption`
    ");
    insta::assert_snapshot!(picture(&["--output", "a.gif"]), @r"
    2
    error: a GIF file holds a clip, and this is one picture
    hint: write pictures, and the frames of a clip, as PNG, JPEG or WebP
    ");
}

/// As published, Latte-1 has two autoencoders, of which `model_index.json` names the plain one.
#[test]
fn the_temporal_decoder_beside_the_plain_one() {
    let workspace = workspace();
    let frames = |name: &str, args: &[&str]| {
        workspace.ok(&[args, &["--quiet", "--output", name]].concat());
        frames_of_png(&workspace.path(name)).0
    };
    let plain =
        ["generate", "--model", "latte", "--prompt", "a", "--height", "32", "--width", "48", "--steps", "2"];
    let with = |further: &'static str| [&plain[..], &[further]].concat();
    insta::assert_snapshot!(workspace.error(&with("--temporal-decoder")), @r"
    2
    error: `latte` has no folder `vae_temporal_decoder` with a temporal decoder
    hint: leave out `--temporal-decoder`: the autoencoder in `vae` then decodes
    ");

    copy(&workspace.path("latte-temporal/vae"), &workspace.path("latte/vae_temporal_decoder"));
    let each = frames("each.png", &plain);
    let together = frames("together.png", &with("--temporal-decoder"));
    assert_ne!(together, each);
    let mut named = plain;
    named[2] = "latte-temporal";
    assert_eq!(frames("named.png", &named), together);

    // The clip says so, which an option overrides.
    let from =
        |further: &[&str]| frames("again.png", &[&["generate", "--from", "together.png"], further].concat());
    assert_eq!(from(&[]), together);
    assert_eq!(from(&["--temporal-decoder=false"]), each);

    let latents = ["--output-type", "latent", "--quiet", "--output", "latents.safetensors"];
    workspace.ok(&[&with("--temporal-decoder")[..], &latents].concat());
    let decode = ["decode", "latents.safetensors", "--model", "latte"];
    assert_eq!(frames("decoded.png", &[&decode[..], &["--temporal-decoder"]].concat()), together);
    assert_ne!(frames("decoded.png", &decode), together);

    let inspected = workspace.ok(&["inspect", "latte", "--temporal-decoder"]);
    assert!(inspected.contains("vae_temporal_decoder  AutoencoderKLTemporalDecoder"), "{inspected}");
    assert!(!inspected.contains("\nvae  "), "{inspected}");
    let picture = ["generate", "--model", "demo", "--prompt", "a", "--temporal-decoder"];
    insta::assert_snapshot!(Workspace::with_demo().error(&picture), @r"
    2
    error: `PixArtAlphaPipeline` makes no clips, so it has no temporal decoder
    hint: leave out `--temporal-decoder`
    ");
}

/// The files of all frames are tested before any work, which would be reported on standard error.
#[test]
fn files_of_frames_are_checked_before_the_run() {
    let workspace = workspace();
    let error = |output: &str| {
        let run = [&RUN[..RUN.len() - 1], &["--output", output]].concat();
        assert_eq!(RUN[RUN.len() - 1], "--quiet");
        workspace.error(&run)
    };
    fs::create_dir(workspace.path("taken-2.png")).unwrap();
    fs::create_dir(workspace.path("folder-0")).unwrap();
    insta::assert_snapshot!(error("taken-{frame}.png"), @r"
    2
    error: output `taken-2.png` is a folder
    hint: choose the path of a file
    ");
    insta::assert_snapshot!(error("folder-{frame}/a.png"), @r"
    1
    error: cannot write `folder-1/a.png`: there is no folder `folder-1`
    hint: create the folder first
    ");
    let long = "a".repeat(247);
    assert!(error(&format!("{long}aaaaa{{frame}}.png")).contains("has more than 255 bytes\nhint: "));
    run(&workspace, &["--num-frames", "1", "--output", &format!("{long}{{frame}}.png")]);
    assert!(workspace.path(&format!("{long}0.png")).is_file());
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("nowhere", workspace.path("link-3.png")).unwrap();
        assert!(error("link-{frame}.png").contains("`link-3.png` is a link that leads nowhere"));
    }
    for frame in 1..4 {
        fs::create_dir(workspace.path(&format!("folder-{frame}"))).unwrap();
    }
    let report = run(&workspace, &["--output", "folder-{frame}/a.png", "--report", "json"]);
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    let paths: Vec<_> =
        report["outputs"].as_array().unwrap().iter().map(|output| output["path"].as_str().unwrap()).collect();
    assert_eq!(paths, ["folder-0/a.png", "folder-1/a.png", "folder-2/a.png", "folder-3/a.png"]);
    assert!(paths.iter().all(|path| workspace.path(path).is_file()));
}

/// A rate that a format cannot hold would be shown at another one.
#[test]
fn rates_of_formats() {
    let workspace = workspace();
    for name in ["a.png", "a.webp", "a.gif", "a.mp4"] {
        run(&workspace, &["--output", name, "--fps", if name == "a.gif" { "50" } else { "1000" }]);
        run(&workspace, &["--output", name, "--fps", "0.01"]);
    }
    assert_eq!(frames_of_png(&workspace.path("a.png")).1, 100.0);
    let error =
        |output: &str, fps: &str| workspace.error(&[&RUN[..], &["--output", output, "--fps", fps]].concat());
    insta::assert_snapshot!(error("b.gif", "50.5"), @r"
    2
    error: a GIF file shows at most 50 frames per second, not `50.5`
    hint: lower `--fps`, or write the clip as `.png`, `.webp` or `.mp4`
    ");
    for fps in ["0", "-0", "1e-9", "0.009", "1000.5", "nan", "inf", "1e38"] {
        assert!(error("b.mp4", fps).contains("frames per second are not between 0.01 and 1000\nhint: "));
    }
}

/// What does not fit is refused before a weight is read.
#[test]
fn latents_that_cannot_be_decoded() {
    let workspace = workspace();
    run(&workspace, &["--output", "clip.safetensors"]);
    workspace.ok(&["random-checkpoint", "demo", "--quiet"]);
    workspace.generate(&["--prompt", "a", "--output", "picture.safetensors"]);
    let error = |latents: &str, model: &str, options: &[&str]| {
        workspace.error(&[&["decode", latents, "--model", model], options].concat())
    };
    insta::assert_snapshot!(error("clip.safetensors", "latte", &["--output", "a.jpg"]), @r"
    2
    error: a JPEG file holds one picture, not a clip of `4` frames
    hint: name a file for each frame with `{frame}` in the path, or write a clip as `.png`, `.webp`, `.gif` or `.mp4`
    ");
    insta::assert_snapshot!(error("clip.safetensors", "latte", &["--output", "a.gif", "--fps", "60"]), @r"
    2
    error: a GIF file shows at most 50 frames per second, not `60`
    hint: lower `--fps`, or write the clip as `.png`, `.webp` or `.mp4`
    ");
    fs::create_dir(workspace.path("taken-3.png")).unwrap();
    assert!(error("clip.safetensors", "latte", &["--output", "taken-{frame}.png"]).contains("is a folder"));
    insta::assert_snapshot!(error("clip.safetensors", "demo", &[]), @r"
    2
    error: latents of shape `[1, 4, 4, 12, 16]` are those of clips, and PixArt makes pictures
    hint: name the model that made them with `--model`
    ");
    insta::assert_snapshot!(error("picture.safetensors", "demo", &["--fps", "8"]), @r"
    2
    error: `--fps` is for clips, and the latents in `picture.safetensors` are those of pictures
    hint: leave it out
    ");
    let decoded = error("picture.safetensors", "demo", &["--decode-chunk-size", "2"]);
    assert!(decoded.contains("`--decode-chunk-size` is for clips"), "{decoded}");
    for shape in [&[0, 4, 3, 4][..], &[1, 4, 0, 4], &[1, 4, 0, 3, 4], &[0, 4, 2, 3, 4]] {
        let empty =
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.to_vec(), &[]).unwrap();
        let bytes = safetensors::serialize([("latents", empty)], None).unwrap();
        fs::write(workspace.path("empty.safetensors"), bytes).unwrap();
        assert_eq!(
            error("empty.safetensors", "latte", &[]),
            format!(
                "2\nerror: `latents` in `empty.safetensors` has shape `{shape:?}`, which holds no picture\n\
                 hint: give a safetensors file with the key `latents`, [n, c, h, w] or [n, c, frames, h, w] in f32\n"
            )
        );
    }
}

/// A clip cut or changed anywhere is read, or refused in one sentence.
#[test]
fn damaged_clips() {
    let workspace = workspace();
    for name in ["a.webp", "a.gif", "a.mp4", "a.png"] {
        run(&workspace, &["--num-frames", "2", "--output", name]);
        let whole = fs::read(workspace.path(name)).unwrap();
        let damaged = |bytes: Vec<u8>| {
            fs::write(workspace.path(name), bytes).unwrap();
            let shown = workspace.run(&["inspect", name]);
            let ends_well = shown.code == Some(0) && shown.stderr.is_empty();
            assert!(ends_well || shown.stderr.starts_with("error: "), "{name}: {}", shown.stderr);
            assert!(matches!(shown.code, Some(0..=2)), "{name}: {}", shown.stderr);
        };
        for end in [0, 1, 4, 8, 12, 13, 20, 40, 100, 300, 600, 900, 1200, whole.len() - 1] {
            damaged(whole[..end.min(whole.len())].to_vec());
        }
        for place in (0..48).chain((48..1500).step_by(61)) {
            let mut bytes = whole.clone();
            bytes[place] ^= 0xff;
            damaged(bytes);
        }
    }
    let names = |bytes: &[u8]| {
        fs::write(workspace.path("b.mp4"), bytes).unwrap();
        workspace.error(&["inspect", "b.mp4"])
    };
    insta::assert_snapshot!(names(b"<html>Not found</html>"), @r"
    1
    error: `b.mp4` does not begin like a PNG, JPEG, WebP, GIF or MP4 file
    hint: give a picture written by `xdit generate`
    ");
}

/// Only the first of several processes has the paths, so only it checks whether the format has room for a clip.
#[test]
fn frames_of_several_processes() {
    let workspace = workspace();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let start = |process| {
        let place = ["--nnodes", "2", "--node-rank", process, "--master-addr", "127.0.0.1"];
        let ranks =
            ["--ring-degree", "2", "--device", "cpu", "--output", "{frame}.jpg", "--master-port", &port];
        workspace.command(&[&RUN[..], &place, &ranks].concat()).spawn().unwrap()
    };
    for process in ["0", "1"].map(start) {
        let output = process.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert!((0..4).all(|frame| workspace.path(&format!("{frame}.jpg")).is_file()));
}
