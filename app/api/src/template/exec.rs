//! Evaluates the nodes of a template.

use std::cmp::Ordering;

use super::error::RenderError;
use super::parse::{Command, Node, Operand, Pipeline};
use super::print;
use super::value::Value;

/// Maximum size of the output.
const MAX_OUTPUT: usize = 64 << 20;
/// Maximum cost of an evaluation, about the bytes of all values that are copied or created: nested ranges and variables in
/// variables multiply.
const MAX_COST: usize = 512 << 20;
/// Minimum cost of a node or an operand.
const STEP: usize = 64;

type Result<T> = std::result::Result<T, RenderError>;

fn fail<T>(what: impl Into<String>) -> Result<T> {
    Err(RenderError(what.into()))
}

pub(super) fn render(nodes: &[Node], root: &Value) -> Result<String> {
    let variables = vec![(String::new(), root.clone())];
    let mut state = State { out: String::new(), variables, cost: 0 };
    state.list(nodes, root)?;
    Ok(state.out)
}

struct State {
    out: String,
    variables: Vec<(String, Value)>,
    /// Cost so far.
    cost: usize,
}

impl State {
    fn spend(&mut self, cost: usize) -> Result<()> {
        self.cost = self.cost.saturating_add(cost);
        if self.cost > MAX_COST { fail("too much work") } else { Ok(()) }
    }

    /// Adds the cost of a value that was created or will be copied.
    fn charge(&mut self, value: &Value) -> Result<()> {
        self.spend(size(value))
    }

    fn list(&mut self, nodes: &[Node], dot: &Value) -> Result<()> {
        for node in nodes {
            self.spend(STEP)?;
            match node {
                Node::Text(text) => self.out.push_str(text),
                Node::Print(pipeline) => {
                    let value = self.pipeline(pipeline, dot)?;
                    if pipeline.variables.is_empty() {
                        self.out.push_str(&print::value(&value));
                    }
                }
                Node::If(pipeline, yes, no) => {
                    let scope = self.variables.len();
                    let taken = truth(&self.pipeline(pipeline, dot)?);
                    self.list(if taken { yes } else { no }, dot)?;
                    self.variables.truncate(scope);
                }
                Node::With(pipeline, yes, no) => {
                    let scope = self.variables.len();
                    let value = self.pipeline(pipeline, dot)?;
                    if truth(&value) {
                        self.list(yes, &value)?
                    } else {
                        self.list(no, dot)?
                    }
                    self.variables.truncate(scope);
                }
                Node::Range(pipeline, body, otherwise) => self.range(pipeline, body, otherwise, dot)?,
            }
            if self.out.len() > MAX_OUTPUT {
                return fail("output too large");
            }
        }
        Ok(())
    }

    fn range(&mut self, pipeline: &Pipeline, body: &[Node], otherwise: &[Node], dot: &Value) -> Result<()> {
        let scope = self.variables.len();
        let items: Vec<(Value, Value)> = match self.commands(pipeline, dot)? {
            Value::List(items, _) => {
                items.into_iter().enumerate().map(|(i, v)| (Value::Int(i as i128), v)).collect()
            }
            Value::Map(map) => map.into_iter().map(|(k, v)| (Value::Text(k), v)).collect(),
            Value::Nil | Value::Missing => Vec::new(),
            other => return fail(format!("range can't iterate over {}", print::value(&other))),
        };
        if items.is_empty() {
            self.list(otherwise, dot)?;
        }
        for (key, value) in items {
            self.spend(STEP)?;
            if !pipeline.variables.is_empty() {
                self.charge(&value)?;
            }
            match pipeline.variables.as_slice() {
                [] => {}
                [one] => self.bind(one, value.clone(), pipeline.assigns),
                [index, one, ..] => {
                    self.bind(index, key, pipeline.assigns);
                    self.bind(one, value.clone(), pipeline.assigns);
                }
            }
            self.list(body, &value)?;
            self.variables.truncate(scope);
        }
        Ok(())
    }

    fn bind(&mut self, name: &str, value: Value, assigns: bool) {
        if assigns && let Some((_, slot)) = self.variables.iter_mut().rev().find(|(n, _)| n == name) {
            *slot = value;
        } else {
            self.variables.push((name.to_owned(), value));
        }
    }

    fn pipeline(&mut self, pipeline: &Pipeline, dot: &Value) -> Result<Value> {
        let value = self.commands(pipeline, dot)?;
        if let Some(name) = pipeline.variables.first() {
            self.charge(&value)?;
            self.bind(name, value.clone(), pipeline.assigns);
        }
        Ok(value)
    }

    fn commands(&mut self, pipeline: &Pipeline, dot: &Value) -> Result<Value> {
        let mut value = None;
        for command in &pipeline.commands {
            value = Some(self.command(command, dot, value.take())?);
        }
        value.map_or_else(|| fail("missing value"), Ok)
    }

    fn command(&mut self, command: &Command, dot: &Value, piped: Option<Value>) -> Result<Value> {
        let Some((first, rest)) = command.operands.split_first() else { return fail("missing value") };
        let Operand::Function(name) = first else { return self.operand(first, dot) };
        // `and` and `or` evaluate only as many operands as necessary.
        if name == "and" || name == "or" {
            let stop = name == "or";
            let mut last = None;
            for operand in rest {
                let value = self.operand(operand, dot)?;
                if truth(&value) == stop {
                    return Ok(value);
                }
                last = Some(value);
            }
            return piped.or(last).map_or_else(|| fail(format!("wrong number of args for {name}")), Ok);
        }
        let mut args = Vec::with_capacity(rest.len() + 1);
        for operand in rest {
            args.push(self.operand(operand, dot)?);
        }
        args.extend(piped);
        let value = call(name, &args)?;
        self.charge(&value)?;
        Ok(value)
    }

    fn operand(&mut self, operand: &Operand, dot: &Value) -> Result<Value> {
        match operand {
            Operand::Dot(path) => {
                let value = walk(dot, path)?;
                self.charge(value)?;
                Ok(value.clone())
            }
            Operand::Variable(name, path) => {
                let value = self.variables.iter().rev().find(|(n, _)| n == name).map(|(_, v)| v);
                let value = walk(value.unwrap_or(&Value::Missing), path)?;
                let cost = size(value).saturating_add(self.variables.len());
                let value = value.clone();
                self.spend(cost)?;
                Ok(value)
            }
            Operand::Function(name) => call(name, &[]),
            Operand::Text(text) => Ok(Value::Text(text.clone())),
            Operand::Int(n) => Ok(Value::Int(*n)),
            Operand::Float(x) => Ok(Value::Float(*x)),
            Operand::Bool(b) => Ok(Value::Bool(*b)),
            Operand::Nil => Ok(Value::Nil),
            Operand::Group(pipeline, path) => {
                let value = self.pipeline(pipeline, dot)?;
                if path.is_empty() { Ok(value) } else { walk(&value, path).cloned() }
            }
        }
    }
}

/// About the bytes of a copy.
fn size(value: &Value) -> usize {
    let inner = match value {
        Value::Text(s) | Value::Time(s) => s.len(),
        Value::List(items, _) => items.iter().map(size).sum(),
        Value::Map(map) => map.iter().map(|(k, v)| k.len() + size(v)).sum(),
        Value::Struct(_, fields) => fields.iter().map(|(_, v)| size(v)).sum(),
        _ => 0,
    };
    STEP + inner
}

fn walk<'v>(value: &'v Value, path: &[String]) -> Result<&'v Value> {
    let mut value = value;
    for name in path {
        value = match value {
            Value::Struct(kind, fields) => match fields.iter().find(|(k, _)| k == name) {
                Some((_, v)) => v,
                None => return fail(format!("can't evaluate field {name} in type {kind}")),
            },
            Value::Map(map) => match map.get(name) {
                Some(v) => v,
                None => return Ok(&Value::Missing),
            },
            Value::Nil | Value::Missing => return Ok(&Value::Missing),
            Value::Absent => return fail(format!("nil pointer evaluating field {name}")),
            other => return fail(format!("can't evaluate field {name} in {}", print::value(other))),
        };
    }
    Ok(value)
}

fn truth(value: &Value) -> bool {
    match value {
        Value::Missing | Value::Nil | Value::Absent => false,
        Value::Bool(b) => *b,
        Value::Int(n) => *n != 0,
        Value::Float(x) => *x != 0.0,
        Value::Text(s) => !s.is_empty(),
        Value::List(items, _) => !items.is_empty(),
        Value::Map(map) => !map.is_empty(),
        Value::Time(_) | Value::Struct(..) => true,
    }
}

fn call(name: &str, args: &[Value]) -> Result<Value> {
    let text = |s: String| Ok(Value::Text(s));
    match (name, args) {
        ("not", [a]) => Ok(Value::Bool(!truth(a))),
        ("len", [a]) => match a {
            Value::Text(s) => Ok(Value::Int(s.len() as i128)),
            Value::List(items, _) => Ok(Value::Int(items.len() as i128)),
            Value::Map(map) => Ok(Value::Int(map.len() as i128)),
            other => fail(format!("len of {}", print::value(other))),
        },
        ("index", [a, keys @ ..]) => keys.iter().try_fold(a.clone(), |value, key| index(&value, key)),
        ("json", [a]) => text(a.json_text()),
        ("print", args) => text(print::print(args)),
        ("println", args) => text(print::println(args)),
        ("printf", [Value::Text(format), args @ ..]) => text(print::printf(format, args)),
        ("eq", [a, others @ ..]) if !others.is_empty() => {
            let mut equal = false;
            for b in others {
                equal |= same(a, b)?;
            }
            Ok(Value::Bool(equal))
        }
        ("ne", [a, b]) => Ok(Value::Bool(!same(a, b)?)),
        ("lt", [a, b]) => Ok(Value::Bool(order(a, b)? == Ordering::Less)),
        ("le", [a, b]) => Ok(Value::Bool(order(a, b)? != Ordering::Greater)),
        ("gt", [a, b]) => Ok(Value::Bool(order(a, b)? == Ordering::Greater)),
        ("ge", [a, b]) => Ok(Value::Bool(order(a, b)? != Ordering::Less)),
        _ => fail(format!("wrong arguments for {name}")),
    }
}

fn index(value: &Value, key: &Value) -> Result<Value> {
    match (value, key) {
        (Value::List(items, _), Value::Int(n)) => {
            let item = usize::try_from(*n).ok().and_then(|n| items.get(n));
            item.cloned().map_or_else(|| fail(format!("index out of range: {n}")), Ok)
        }
        (Value::Map(map), Value::Text(key)) => Ok(map.get(key).cloned().unwrap_or(Value::Missing)),
        (Value::Nil, Value::Text(_)) => Ok(Value::Missing),
        _ => fail("can't index item"),
    }
}

fn same(a: &Value, b: &Value) -> Result<bool> {
    match (a, b) {
        (Value::Bool(a), Value::Bool(b)) => Ok(a == b),
        (Value::Nil | Value::Absent | Value::Missing, Value::Nil | Value::Absent | Value::Missing) => {
            Ok(true)
        }
        (Value::Nil | Value::Absent | Value::Missing, _)
        | (_, Value::Nil | Value::Absent | Value::Missing) => Ok(false),
        _ => Ok(order(a, b)? == Ordering::Equal),
    }
}

fn order(a: &Value, b: &Value) -> Result<Ordering> {
    match (a, b) {
        (Value::Int(a), Value::Int(b)) => Ok(a.cmp(b)),
        (Value::Float(a), Value::Float(b)) => a.partial_cmp(b).map_or_else(|| fail("not a number"), Ok),
        (Value::Text(a) | Value::Time(a), Value::Text(b) | Value::Time(b)) => Ok(a.cmp(b)),
        _ => fail("incompatible types for comparison"),
    }
}
