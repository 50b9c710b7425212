//! An empty folder to run the program in.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

/// A folder of its own for each test.
pub struct Workspace(TempDir);

/// What a run gave back.
pub struct Run {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Workspace {
    /// An empty one.
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    /// One with a checkpoint in `demo`.
    pub fn with_demo() -> Self {
        let workspace = Self::new();
        workspace.ok(&["demo-checkpoint", "demo", "--quiet"]);
        workspace
    }

    /// The path of a file in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The program, to be run in it. It sees nothing of the user's environment, and no network.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xdit"));
        command
            .args(args)
            .current_dir(self.0.path())
            .env_clear()
            .env("HF_HUB_OFFLINE", "1")
            .env("HF_HOME", "hub");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs the program.
    pub fn run(&self, args: &[&str]) -> Run {
        let output = self.command(args).output().expect("the program starts");
        let text = |bytes| String::from_utf8(bytes).expect("output is UTF-8");
        Run { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// Runs the program, which must succeed; its standard output.
    pub fn ok(&self, args: &[&str]) -> String {
        let run = self.run(args);
        assert_eq!(run.code, Some(0), "{args:?}: {}", run.stderr);
        run.stdout
    }

    /// Runs `xdit generate` on the checkpoint in `demo` with two steps; its standard output.
    pub fn generate(&self, args: &[&str]) -> String {
        let run = ["generate", "--model", "demo", "--num-inference-steps", "2", "--quiet"];
        self.ok(&[&run, args].concat())
    }

    /// The exit code and the standard error of a run that must fail and print no data.
    pub fn error(&self, args: &[&str]) -> String {
        let before = self.files();
        let run = self.run(args);
        assert_eq!(run.stdout, "", "{args:?}");
        assert_eq!(self.files(), before, "a failed run leaves nothing behind: {args:?}");
        format!("{}\n{}", run.code.expect("an exit code"), run.stderr)
    }

    /// Names of the files in it, sorted; folders count as files.
    pub fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).expect("the folder is there");
        let name = |entry: std::io::Result<fs::DirEntry>| entry.expect("an entry").file_name().into_string();
        let mut names: Vec<String> = entries.map(|entry| name(entry).expect("names are UTF-8")).collect();
        names.sort();
        names
    }
}

/// Width, height and pixels of a PNG file.
pub fn pixels(path: &Path) -> (u32, u32, Vec<u8>) {
    let file = std::io::BufReader::new(fs::File::open(path).expect("the picture is there"));
    let mut reader = png::Decoder::new(file).read_info().expect("a PNG file");
    let mut pixels = vec![0; reader.output_buffer_size().expect("a picture that fits in memory")];
    let info = reader.next_frame(&mut pixels).expect("a whole picture");
    assert_eq!((info.color_type, info.bit_depth), (png::ColorType::Rgb, png::BitDepth::Eight));
    (info.width, info.height, pixels)
}
