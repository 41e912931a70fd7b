//! How a command ends: exit codes, and the one error type that carries one.

use lacuna_recipe::Diagnostic;
use std::fmt;
use std::path::Path;

/// The exit codes of every verb.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Ok = 0,
    Usage = 2,
    Input = 3,
    Data = 4,
    Internal = 70,
}

/// What each code means, as `--help` shows it.
pub const EXITS: &[(Exit, &str)] = &[
    (Exit::Ok, "done"),
    (Exit::Usage, "the command line makes no sense"),
    (Exit::Input, "a model, recipe, run folder or output file cannot be used"),
    (Exit::Data, "a data set or an image cannot be used"),
    (Exit::Internal, "a bug in lacuna"),
];

pub type Result<T, E = Failure> = std::result::Result<T, E>;

/// Why a command stops. Each message is `where: what (what to do)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub exit: Exit,
    pub messages: Vec<String>,
}

impl Failure {
    pub fn new(exit: Exit, message: impl Into<String>) -> Failure {
        Failure { exit, messages: vec![message.into()] }
    }

    pub fn usage(message: impl Into<String>) -> Failure {
        Failure::new(Exit::Usage, message)
    }

    pub fn input(message: impl Into<String>) -> Failure {
        Failure::new(Exit::Input, message)
    }

    pub fn io(path: &Path, error: std::io::Error) -> Failure {
        Failure::input(format!("{}: {error}", path.display()))
    }

    /// The same failure, its messages led by a place that they do not name themselves.
    pub fn at(mut self, place: impl fmt::Display) -> Failure {
        self.messages.iter_mut().for_each(|m| *m = format!("{place}: {m}"));
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.messages.join("\n"))
    }
}

impl std::error::Error for Failure {}

/// A diagnostic as `file:line:column: message (help)`, without its severity; below it the line and a mark.
pub fn place_and_message(d: &Diagnostic) -> String {
    let place = if d.line > 0 { format!("{}:{}:{}", d.file, d.line, d.column) } else { d.file.clone() };
    let help = if d.help.is_empty() { String::new() } else { format!(" ({})", d.help) };
    let excerpt = if d.excerpt.is_empty() { String::new() } else { format!("\n{}", d.excerpt) };
    format!("{place}: {}{help}{excerpt}", d.message)
}

impl From<Vec<Diagnostic>> for Failure {
    fn from(diagnostics: Vec<Diagnostic>) -> Failure {
        Failure { exit: Exit::Input, messages: diagnostics.iter().map(place_and_message).collect() }
    }
}

impl From<Diagnostic> for Failure {
    fn from(diagnostic: Diagnostic) -> Failure {
        vec![diagnostic].into()
    }
}

impl From<lacuna_data::Error> for Failure {
    fn from(e: lacuna_data::Error) -> Failure {
        let exit = if matches!(e, lacuna_data::Error::Argument { .. }) { Exit::Usage } else { Exit::Data };
        Failure::new(exit, e.to_string())
    }
}

impl From<lacuna_train::checkpoint::Error> for Failure {
    fn from(e: lacuna_train::checkpoint::Error) -> Failure {
        Failure::input(e.to_string())
    }
}

impl From<lacuna_train::Error> for Failure {
    fn from(e: lacuna_train::Error) -> Failure {
        match e {
            lacuna_train::Error::Diagnostics(diagnostics) => diagnostics.into(),
            lacuna_train::Error::Data(e) => e.into(),
            lacuna_train::Error::Disk(e) => e.into(),
            e => Failure::input(e.to_string()),
        }
    }
}

impl From<lacuna_onnx::Error> for Failure {
    fn from(e: lacuna_onnx::Error) -> Failure {
        Failure::input(e.to_string())
    }
}

impl From<lacuna_container::Error> for Failure {
    fn from(e: lacuna_container::Error) -> Failure {
        Failure::input(e.to_string())
    }
}

impl From<lacuna_pipelines::Error> for Failure {
    fn from(e: lacuna_pipelines::Error) -> Failure {
        match e {
            lacuna_pipelines::Error::Data(e) => e.into(),
            lacuna_pipelines::Error::Engine(e) => e.into(),
            lacuna_pipelines::Error::Text { .. } => Failure::new(Exit::Data, e.to_string()),
            e => Failure::input(e.to_string()),
        }
    }
}

impl From<lacuna_weights::Error> for Failure {
    fn from(e: lacuna_weights::Error) -> Failure {
        Failure::input(e.to_string())
    }
}

impl From<lacuna_engine::Error> for Failure {
    fn from(e: lacuna_engine::Error) -> Failure {
        use lacuna_engine::Error::*;
        let exit = match e {
            Options(_) | TooLarge { .. } => Exit::Usage,
            Pass { .. } => Exit::Internal,
            _ => Exit::Input,
        };
        Failure::new(exit, e.to_string())
    }
}

impl From<lacuna_sparsify::Error> for Failure {
    fn from(e: lacuna_sparsify::Error) -> Failure {
        use lacuna_sparsify::Error::*;
        match e {
            Options(why) => Failure::usage(why),
            Sample { .. } => Failure::new(Exit::Data, e.to_string()),
            Layer { .. } => Failure::input(e.to_string()),
            Graph(e) => e.into(),
            Engine(e) => e.into(),
        }
    }
}

impl From<lacuna_ir::Error> for Failure {
    fn from(e: lacuna_ir::Error) -> Failure {
        Failure::input(e.to_string())
    }
}

impl From<lacuna_nn::capture::CaptureError> for Failure {
    fn from(e: lacuna_nn::capture::CaptureError) -> Failure {
        Failure::new(Exit::Internal, format!("capture: {e}"))
    }
}
