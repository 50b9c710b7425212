//! A folder to run the program in.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

/// A temporary folder; each test has its own.
pub struct Workspace(TempDir);

/// The result of a run.
pub struct Run {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Workspace {
    /// Creates an empty workspace.
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    /// Creates a workspace with a checkpoint in `demo`.
    pub fn with_demo() -> Self {
        let workspace = Self::new();
        workspace.ok(&["random-checkpoint", "demo", "--quiet"]);
        workspace
    }

    /// The path of a file in the workspace.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The program, set up to run in the workspace without the user's environment and without a network.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xdit"));
        command
            .args(args)
            .current_dir(self.0.path())
            .env_clear()
            .env("HF_HUB_OFFLINE", "1")
            .env("HF_HOME", "hub")
            .env("XDG_CACHE_HOME", self.0.path().join("cache"))
            // Libraries of graphics drivers print an error without the first, and write files without the second.
            .env("XDG_RUNTIME_DIR", self.0.path())
            .env("MESA_SHADER_CACHE_DISABLE", "true");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs the program.
    pub fn run(&self, args: &[&str]) -> Run {
        let output = self.command(args).output().expect("the program starts");
        let text = |bytes| String::from_utf8(bytes).expect("output is UTF-8");
        Run { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// Runs the program, which must succeed, and returns its standard output.
    pub fn ok(&self, args: &[&str]) -> String {
        let run = self.run(args);
        assert_eq!(run.code, Some(0), "{args:?}: {}", run.stderr);
        run.stdout
    }

    /// Runs `xdit generate` with two steps on the checkpoint in `demo`, and returns its standard output.
    pub fn generate(&self, args: &[&str]) -> String {
        let run = ["generate", "--model", "demo", "--num-inference-steps", "2", "--quiet"];
        self.ok(&[&run, args].concat())
    }

    /// Runs `xdit plan`, and returns its tables without the line on the memory of this machine behind them.
    pub fn plan(&self, args: &[&str]) -> String {
        let plan = self.ok(&[&["plan"], args].concat());
        let (tables, residency) = plan.trim_end().rsplit_once("\n\n").expect("tables and a line");
        assert!(
            residency.starts_with("residency (`--keep request`): ") && residency.lines().count() == 1,
            "{residency}"
        );
        tables.to_owned()
    }

    /// Runs the program, which must fail and print no data, and returns its exit code and standard error.
    pub fn error(&self, args: &[&str]) -> String {
        let before = self.files();
        let run = self.run(args);
        assert_eq!(run.stdout, "", "{args:?}");
        assert_eq!(self.files(), before, "a failed run leaves nothing behind: {args:?}");
        format!("{}\n{}", run.code.expect("an exit code"), run.stderr)
    }

    /// The sorted names of the files and folders in the workspace.
    pub fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).expect("the folder exists");
        let name = |entry: std::io::Result<fs::DirEntry>| entry.expect("an entry").file_name().into_string();
        let mut names: Vec<String> = entries.map(|entry| name(entry).expect("names are UTF-8")).collect();
        names.sort();
        names
    }
}

/// The width, height and pixels of a PNG file.
pub fn pixels(path: &Path) -> (u32, u32, Vec<u8>) {
    let file = std::io::BufReader::new(fs::File::open(path).expect("the picture exists"));
    let mut reader = png::Decoder::new(file).read_info().expect("a PNG file");
    let mut pixels = vec![0; reader.output_buffer_size().expect("a picture that fits in memory")];
    let info = reader.next_frame(&mut pixels).expect("a complete picture");
    assert_eq!((info.color_type, info.bit_depth), (png::ColorType::Rgb, png::BitDepth::Eight));
    (info.width, info.height, pixels)
}
