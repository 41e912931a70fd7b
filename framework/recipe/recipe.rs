//! From recipe text to a [`Recipe`]: front matter of a card, variables and overrides, `eval(...)`, stages, modifiers.

use crate::diagnostic::{Diagnostic, Pos, Severity, did_you_mean, quote_lines};
use crate::expr::{self, Number};
use crate::kind::{Kind, MaskStructure};
use crate::modifier::{self, Modifier};
use crate::modifier_table::{Absent, COMMON_KEYS, ModifierRow, Type};
use crate::value::numeric_text;
use crate::yaml::{self, Data, Document, NODES_MAX, NodeId, RECIPE_BYTES_MAX, YAML_DEPTH_MAX};
use crate::yaml_scalar;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::ops::Range;
use std::path::Path;

/// The key of a recipe or stage that says where it comes from; it is no variable.
pub(crate) const METADATA: &str = "__metadata__";
/// Longest chain of variables that refer to variables.
const VARIABLE_DEPTH_MAX: usize = 32;

/// An evaluated recipe.
#[derive(Clone)]
pub struct Recipe {
    /// Name of the file, as diagnostics show it.
    pub source: String,
    /// The file's text as it was read, before overrides.
    pub text: String,
    /// In the order of the text.
    pub modifiers: Vec<Modifier>,
    /// Stages in the order of the text; empty for an ordinary recipe. Their epochs are absolute.
    pub stages: Vec<Stage>,
    /// Top-level variables after overrides and evaluation, with the text that stands for their value.
    pub variables: Vec<(String, String)>,
    /// What `__metadata__` holds: a node of `doc`.
    pub metadata: Option<NodeId>,
    /// Findings that did not stop the reading.
    pub warnings: Vec<Diagnostic>,
    /// The evaluated nodes that the modifiers' arguments refer to.
    pub doc: Document,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stage {
    pub name: String,
    pub pos: Pos,
    /// What the stage's `__metadata__` holds: a node of the recipe's document.
    pub metadata: Option<NodeId>,
}

/// Reads a recipe. `source` names it in diagnostics; a name that ends in `.md` makes the text a card, whose recipe
/// is its front matter. `overrides` replace variables by name; their values are read as plain YAML scalars.
///
/// Errors: everything found wrong, each with its place.
pub fn parse(text: &str, source: &str, overrides: &[(String, String)]) -> Result<Recipe, Vec<Diagnostic>> {
    parse_with(text, source, overrides, &[])
}

/// [`parse`] with classes of a user's own, of [`Status::Custom`](crate::Status::Custom).
pub fn parse_with(
    text: &str,
    source: &str,
    overrides: &[(String, String)],
    custom: &'static [ModifierRow],
) -> Result<Recipe, Vec<Diagnostic>> {
    read(text, source, overrides, custom).map_err(|mut found| {
        quote_lines(&mut found, text);
        found
    })
}

fn read(
    text: &str,
    source: &str,
    overrides: &[(String, String)],
    custom: &'static [ModifierRow],
) -> Result<Recipe, Vec<Diagnostic>> {
    if text.len() > RECIPE_BYTES_MAX {
        let message = format!("the recipe is {} bytes long; the limit is {RECIPE_BYTES_MAX}", text.len());
        return Err(vec![Diagnostic::error(source, Pos::default(), message, "")]);
    }
    let (yaml_text, first_line) = front_matter(text, source).map_err(|error| vec![error])?;
    let (doc, found) = yaml::parse(yaml_text, source, first_line).map_err(|error| vec![error])?;
    let mut reader = Reader {
        doc,
        file: source,
        found,
        scopes: Vec::new(),
        passed: 0,
        session: false,
        missing: None,
        custom,
    };
    let layout = reader.layout();
    if reader.failed() {
        return Err(reader.errors());
    }
    reader.session = layout.groups.iter().any(|group| reader.doc.is_map(group.node));
    reader.override_variables(overrides);
    reader.evaluate();
    if reader.failed() {
        return Err(reader.errors());
    }
    let modifiers = reader.modifiers(&layout);
    if reader.failed() {
        return Err(reader.errors());
    }
    let doc = reader.doc;
    let global = &reader.scopes[0];
    let variables = global.order.iter().map(|name| (name.clone(), doc.show(global.names[name]))).collect();
    let stages = layout.stages;
    let mut warnings = summarise(reader.found);
    quote_lines(&mut warnings, text);
    Ok(Recipe {
        source: source.to_owned(),
        text: text.to_owned(),
        modifiers,
        stages,
        variables,
        metadata: layout.metadata,
        warnings,
        doc,
    })
}

impl Recipe {
    /// Reads the recipe file at `path`.
    pub fn load(path: impl AsRef<Path>, overrides: &[(String, String)]) -> Result<Recipe, Vec<Diagnostic>> {
        let path = path.as_ref();
        let source = path.display().to_string();
        let fail = |message: String| vec![Diagnostic::error(&source, Pos::default(), message, "")];
        let size = std::fs::metadata(path).map_err(|e| fail(format!("cannot read the recipe: {e}")))?.len();
        if size > RECIPE_BYTES_MAX as u64 {
            return Err(fail(format!("the recipe is {size} bytes long; the limit is {RECIPE_BYTES_MAX}")));
        }
        let text = std::fs::read_to_string(path).map_err(|e| fail(format!("cannot read the recipe: {e}")))?;
        parse(&text, &source, overrides)
    }

    /// Length of the training: the last start or end of any modifier, rounded up to a whole epoch.
    pub fn max_epochs(&self) -> u32 {
        let last = self.modifiers.iter().filter(|m| m.enabled).flat_map(|m| [m.start_epoch(), m.end_epoch()]);
        // Epochs are at most 1e6.
        last.fold(0.0_f64, |max, epoch| max.max(epoch.ceil())) as u32
    }

    /// The recipe with the masks that SparseML made of it: `mask_type: [a, b]` is a run of a·b consecutive (output, input)
    /// pairs ([`MaskStructure::PairRun`]) where it says a tile. Blocks `[1, b]` are the same in both. A side of -1 is each
    /// tensor's own, and not the first tensor's as it was there.
    pub fn sparseml_compatible(mut self) -> Recipe {
        for modifier in &mut self.modifiers {
            let structure = match &mut modifier.kind {
                Kind::Pruning(pruning) => &mut pruning.structure,
                Kind::Acdc(acdc) => &mut acdc.structure,
                Kind::TopKast(kast) => &mut kast.structure,
                _ => continue,
            };
            if let MaskStructure::Block { rows, columns } = *structure {
                *structure = MaskStructure::PairRun { rows, columns };
            }
        }
        self
    }

    /// The recipe with every expression evaluated and every default written out: one YAML list.
    pub fn expanded(&self) -> String {
        if self.modifiers.is_empty() {
            return "modifiers: []\n".to_owned();
        }
        let mut out = String::from("modifiers:\n");
        for modifier in &self.modifiers {
            let _ = writeln!(out, "  - !{}", modifier.class());
            for key in modifier.row.keys.iter().chain(COMMON_KEYS) {
                let given = modifier.args.iter().find(|arg| arg.key.name == key.name);
                let value = match (given, key.default) {
                    (_, Absent::Dropped) => continue,
                    _ if key.ty == Type::Options => continue,
                    (Some(arg), _) => self.doc.show(arg.value),
                    (None, Absent::Null) => "null".to_owned(),
                    (None, Absent::Bool(value)) => value.to_string(),
                    (None, Absent::Int(value)) => value.to_string(),
                    (None, Absent::Float(value)) => format!("{value:?}"),
                    (None, Absent::Text(value)) => yaml_scalar::show_text(value),
                    (None, Absent::Empty) => "[]".to_owned(),
                    // Only the session style may leave such a key out.
                    (None, Absent::Required) => "-1.0".to_owned(),
                };
                if key.name != "enabled" || value == "false" {
                    let _ = writeln!(out, "      {}: {value}", key.name);
                }
            }
        }
        out
    }
}

/// Reads `--recipe-args`: a JSON object, or `name=value,name=value`.
pub fn parse_overrides(text: &str) -> Result<Vec<(String, String)>, Diagnostic> {
    let fail = |message: String| {
        let help = "write `num_epochs=10,init_lr=0.1` or a JSON object";
        Diagnostic::error("--recipe-args", Pos::default(), message, help)
    };
    if text.trim_start().starts_with('{') {
        let value: serde_json::Value =
            serde_json::from_str(text).map_err(|e| fail(format!("invalid JSON: {e}")))?;
        let entries = value.as_object().into_iter().flatten();
        return Ok(entries
            .map(|(name, value)| {
                (name.clone(), value.as_str().map_or_else(|| value.to_string(), str::to_owned))
            })
            .collect());
    }
    let mut overrides = Vec::new();
    for part in text.split(',').filter(|part| !part.trim().is_empty()) {
        // SparseML takes a colon, too.
        let pair = part.split_once('=').or_else(|| part.split_once(':'));
        let (name, value) = pair.ok_or_else(|| fail(format!("`{part}` is not name=value")))?;
        if name.trim().is_empty() {
            return Err(fail(format!("`{part}` has no name")));
        }
        overrides.push((name.trim().to_owned(), value.trim().to_owned()));
    }
    Ok(overrides)
}

/// The YAML of a card and the number of its first line; the whole text for anything but `.md`.
fn front_matter<'a>(text: &'a str, source: &str) -> Result<(&'a str, u32), Diagnostic> {
    if !source.to_ascii_lowercase().ends_with(".md") {
        return Ok((text, 1));
    }
    let mut begin: Option<(usize, u32)> = None;
    let mut offset = 0;
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let fence = line.trim_start_matches('\u{feff}').trim();
        match begin {
            None if fence == "---" || fence == "+++" => {
                begin = Some((offset + line.len(), number as u32 + 2))
            }
            // SparseML takes either fence for the end.
            Some((start, first_line)) if fence == "---" || fence == "+++" => {
                return Ok((&text[start..offset], first_line));
            }
            _ => {}
        }
        offset += line.len();
    }
    let (message, pos) = match begin {
        None => ("the card has no front matter", Pos { line: 1, column: 1 }),
        Some((_, line)) => ("the card's front matter does not end", Pos { line: line - 1, column: 1 }),
    };
    Err(Diagnostic::error(source, pos, message, "put the recipe between two lines of `---`"))
}

/// One warning for each message, with the number of places.
fn summarise(found: Vec<Diagnostic>) -> Vec<Diagnostic> {
    let mut order: Vec<Diagnostic> = Vec::new();
    let mut counts: HashMap<String, usize> = HashMap::new();
    for diagnostic in found {
        let count = counts.entry(diagnostic.message.clone()).or_insert(0);
        *count += 1;
        if *count == 1 {
            order.push(diagnostic);
        }
    }
    for diagnostic in &mut order {
        let count = counts[&diagnostic.message];
        if count > 1 {
            diagnostic.message = format!("{} ({count} places, here the first)", diagnostic.message);
        }
    }
    order
}

/// The groups of modifiers in a recipe.
struct Layout {
    groups: Vec<Group>,
    stages: Vec<Stage>,
    metadata: Option<NodeId>,
}

/// A list of tagged maps (the classic style), or a map from class to arguments (the session style).
struct Group {
    name: String,
    node: NodeId,
    stage: Option<u32>,
}

/// The variables that an expression can see: those of its stage, then the top level's (scope 0).
struct Scope {
    /// Rows of the text that it holds for.
    rows: Range<u32>,
    names: HashMap<String, NodeId>,
    order: Vec<String>,
}

struct Reader<'a> {
    doc: Document,
    file: &'a str,
    found: Vec<Diagnostic>,
    scopes: Vec<Scope>,
    /// Nodes passed through lone names so far.
    passed: u32,
    /// Whether modifiers are written in the session style, which lets the command line define variables.
    session: bool,
    /// The variable that an expression asked for and that is not there.
    missing: Option<String>,
    /// Classes of a user's own.
    custom: &'static [ModifierRow],
}

impl Reader<'_> {
    fn failed(&self) -> bool {
        self.found.iter().any(|d| d.severity == Severity::Error)
    }

    /// The errors in the order of the text.
    fn errors(mut self) -> Vec<Diagnostic> {
        self.found.retain(|d| d.severity == Severity::Error);
        self.found.sort_by_key(|d| (d.line, d.column));
        self.found
    }

    fn error(&mut self, pos: Pos, message: impl Into<String>, help: impl Into<String>) {
        self.found.push(Diagnostic::error(self.file, pos, message, help));
    }

    /// Sorts the top level into modifier lists, stages and variables.
    fn layout(&mut self) -> Layout {
        let mut layout = Layout { groups: Vec::new(), stages: Vec::new(), metadata: None };
        let root = self.doc.root();
        self.scopes.push(Scope { rows: 0..u32::MAX, names: HashMap::new(), order: Vec::new() });
        if !self.doc.is_map(root) {
            let pos = self.doc.pos(root);
            self.error(
                pos,
                "a recipe is a map with a list of modifiers",
                "write `modifiers:` and below it `- !EpochRangeModifier`",
            );
            return layout;
        }
        for (key, value) in self.entries(root) {
            let name = self.key_name(key);
            let is_stage = self.doc.map(value).any(|(k, _)| self.key_name(k).contains("modifiers"));
            if name.contains("modifiers") {
                self.group(&mut layout, name, value, None);
            } else if name == METADATA {
                layout.metadata = Some(value);
            } else if is_stage {
                self.stage(&mut layout, name, key, value);
            } else {
                self.scopes[0].order.push(name.clone());
                self.scopes[0].names.insert(name, value);
            }
        }
        if layout.groups.is_empty() && !self.failed() {
            let pos = self.doc.pos(root);
            self.error(
                pos,
                "the recipe has no list of modifiers",
                "name one `modifiers:` or `..._modifiers:`",
            );
        }
        layout
    }

    fn stage(&mut self, layout: &mut Layout, name: String, key: NodeId, value: NodeId) {
        let stage = layout.stages.len() as u32;
        layout.stages.push(Stage { name, pos: self.doc.pos(key), metadata: None });
        let mut scope = Scope { rows: self.doc.subtree(value), names: HashMap::new(), order: Vec::new() };
        for (key, value) in self.entries(value) {
            let name = self.key_name(key);
            if name.contains("modifiers") {
                self.group(layout, name, value, Some(stage));
            } else if name == METADATA {
                layout.stages[stage as usize].metadata = Some(value);
            } else {
                scope.order.push(name.clone());
                scope.names.insert(name, value);
            }
        }
        self.scopes.push(scope);
    }

    fn group(&mut self, layout: &mut Layout, name: String, value: NodeId, stage: Option<u32>) {
        match self.doc.data(value) {
            Data::List(_) | Data::Map(_) => layout.groups.push(Group { name, node: value, stage }),
            Data::Null => {}
            _ => self.error(self.doc.pos(value), format!("`{name}` must be a list of modifiers"), ""),
        }
    }

    fn entries(&self, node: NodeId) -> Vec<(NodeId, NodeId)> {
        self.doc.map(node).collect()
    }

    fn key_name(&self, key: NodeId) -> String {
        self.doc.text(key).map_or_else(|| self.doc.show(key), str::to_owned)
    }

    /// Replaces variables, wherever a scope declares them, and whatever refers to them by alias. Recipes of the session
    /// style may leave variables to the command line: there a new name becomes one.
    fn override_variables(&mut self, overrides: &[(String, String)]) {
        for (name, value) in overrides {
            let nodes: Vec<NodeId> = self.scopes.iter().filter_map(|s| s.names.get(name).copied()).collect();
            if nodes.is_empty() && !self.session {
                let known = self.scopes.iter().flat_map(|scope| scope.order.iter().map(String::as_str));
                let mut help = did_you_mean(name, known.clone());
                if help.is_empty() {
                    help = format!("variables: {}", known.collect::<Vec<_>>().join(", "));
                }
                self.error(Pos::default(), format!("the recipe has no variable `{name}` to set"), help);
                continue;
            }
            let set = match self.override_value(value) {
                Ok(set) => set,
                Err(error) => {
                    self.found.push(error);
                    continue;
                }
            };
            if nodes.is_empty() {
                self.scopes[0].order.push(name.clone());
                self.scopes[0].names.insert(name.clone(), set);
            }
            let data = self.doc.data(set);
            for node in nodes {
                self.doc.set_with_aliases(node, data);
            }
        }
    }

    /// A plain scalar, or a list or map in flow form (JSON is such).
    fn override_value(&mut self, text: &str) -> Result<NodeId, Diagnostic> {
        let text = text.trim();
        if !text.starts_with(['[', '{']) {
            return Ok(self.doc.add_scalar(text));
        }
        let (value, _) = yaml::parse(text, "--recipe-args", 1)?;
        Ok(self.doc.graft(&value))
    }

    /// Computes every `eval(...)` of the document in place.
    fn evaluate(&mut self) {
        for node in self.doc.nodes() {
            if self.expression(node).is_some() {
                let mut chain = Vec::new();
                let scope = self.scope_of(node);
                if let Err(reason) = self.resolve(node, scope, &mut chain) {
                    let text = yaml_scalar::cut(self.doc.text(node).unwrap_or_default());
                    let message = format!("cannot compute `{text}`: {reason}");
                    let help = self.missing.take().map(|name| self.variable_help(&name));
                    self.error(self.doc.pos(node), message, help.unwrap_or_default());
                }
            }
        }
    }

    fn expression(&self, node: NodeId) -> Option<&str> {
        self.doc.text(node)?.trim().strip_prefix("eval(")?.strip_suffix(')')
    }

    fn scope_of(&self, node: NodeId) -> usize {
        let inside = |scope: &Scope| scope.rows.contains(&node.number());
        self.scopes.iter().skip(1).position(inside).map_or(0, |stage| stage + 1)
    }

    /// Evaluates one node and stores the result. A lone name passes any value through, a list or a text too.
    fn resolve(&mut self, node: NodeId, scope: usize, chain: &mut Vec<NodeId>) -> Result<(), String> {
        let Some(text) = self.expression(node).map(str::to_owned) else { return Ok(()) };
        if chain.contains(&node) {
            return Err("its variables refer to each other in a circle".to_owned());
        }
        if chain.len() >= VARIABLE_DEPTH_MAX {
            return Err(format!("more than {VARIABLE_DEPTH_MAX} variables refer to each other in a row"));
        }
        chain.push(node);
        let data = match self.variable(text.trim(), scope) {
            Some((variable, scope)) => {
                self.resolve_tree(variable, scope, chain)?;
                self.doc.data(variable)
            }
            None => {
                let number = expr::evaluate(&text, &mut |name| self.number(name, scope, chain))?;
                match number {
                    Number::Int(value) => Data::Int(value),
                    Number::Float(value) => Data::Float(value),
                }
            }
        };
        chain.pop();
        self.doc.set(node, data);
        Ok(())
    }

    /// Evaluates a variable's whole value, which is about to stand in one more place. What all such places unfold to is
    /// bounded as it is for aliases, and a list that holds itself is a circle.
    fn resolve_tree(&mut self, root: NodeId, scope: usize, chain: &mut Vec<NodeId>) -> Result<(), String> {
        let mut stack = vec![(root, 1)];
        while let Some((node, depth)) = stack.pop() {
            self.passed += 1;
            if depth > YAML_DEPTH_MAX || self.passed > NODES_MAX {
                return Err("its variables unfold to more nodes than a recipe may have".to_owned());
            }
            self.resolve(node, scope, chain)?;
            stack.extend(self.doc.list(node).iter().map(|&item| (item, depth + 1)));
            stack.extend(self.doc.map(node).map(|(_, value)| (value, depth + 1)));
        }
        Ok(())
    }

    /// The node of a variable and the scope that it was found in.
    fn variable(&self, name: &str, scope: usize) -> Option<(NodeId, usize)> {
        let find = |scope: usize| self.scopes[scope].names.get(name).map(|&node| (node, scope));
        find(scope).or_else(|| find(0))
    }

    fn variable_help(&self, name: &str) -> String {
        let known = self.scopes.iter().flat_map(|scope| scope.order.iter().map(String::as_str));
        match did_you_mean(name, known) {
            help if !help.is_empty() => help,
            _ if self.session => format!("define it, or give it: `--recipe-args {name}=...`"),
            _ => format!("define it: `{name}: ...` at the top of the recipe"),
        }
    }

    fn number(&mut self, name: &str, scope: usize, chain: &mut Vec<NodeId>) -> Result<Number, String> {
        let Some((node, scope)) = self.variable(name, scope) else {
            self.missing = Some(name.to_owned());
            return Err(format!("there is no variable `{name}`"));
        };
        self.resolve(node, scope, chain)?;
        match self.doc.data(node) {
            Data::Int(value) => Ok(Number::Int(value)),
            Data::Float(value) if value.is_finite() => Ok(Number::Float(value)),
            Data::Bool(value) => Ok(Number::Int(i64::from(value))),
            _ => match self.doc.text(node).and_then(numeric_text) {
                Some(value) => Ok(Number::Float(value)),
                None => Err(format!("the variable `{name}` is `{}`, not a number", self.doc.brief(node))),
            },
        }
    }

    fn modifiers(&mut self, layout: &Layout) -> Vec<Modifier> {
        let (mut modifiers, custom) = (Vec::new(), self.custom);
        for group in &layout.groups {
            let entry = |class, pos, node, session| modifier::Entry {
                class,
                pos,
                node,
                group: &group.name,
                stage: group.stage,
                session,
                custom,
            };
            for (key, node) in self.entries(group.node) {
                let entry = entry(self.key_name(key), self.doc.pos(key), node, true);
                modifiers.extend(modifier::read(&self.doc, self.file, &entry, &mut self.found));
            }
            for node in self.doc.list(group.node).to_vec() {
                let pos = self.doc.pos(node);
                let Some(class) = self.doc.tag(node).map(str::to_owned) else {
                    let message = format!("`{}` is not a modifier", self.doc.brief(node));
                    self.error(pos, message, "a modifier is written `- !NameModifier`");
                    continue;
                };
                let entry = entry(class, pos, node, false);
                modifiers.extend(modifier::read(&self.doc, self.file, &entry, &mut self.found));
            }
        }
        modifiers
    }
}
