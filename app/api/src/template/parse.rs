//! Parses text and actions into a tree of nodes.

use super::error::ParseError;
use super::lex::{self, Piece, Token};

/// Maximum nesting of blocks and of parentheses.
const MAX_DEPTH: usize = 50;

#[derive(Clone, Debug)]
pub(super) enum Node {
    Text(String),
    Print(Pipeline),
    If(Pipeline, Vec<Node>, Vec<Node>),
    With(Pipeline, Vec<Node>, Vec<Node>),
    Range(Pipeline, Vec<Node>, Vec<Node>),
}

/// `$a, $b := command | command`.
#[derive(Clone, Debug)]
pub(super) struct Pipeline {
    pub(super) variables: Vec<String>,
    /// `=` instead of `:=`.
    pub(super) assigns: bool,
    pub(super) commands: Vec<Command>,
}

/// A function or operand and its arguments.
#[derive(Clone, Debug)]
pub(super) struct Command {
    pub(super) operands: Vec<Operand>,
}

#[derive(Clone, Debug)]
pub(super) enum Operand {
    Dot(Vec<String>),
    Variable(String, Vec<String>),
    Function(String),
    Text(String),
    Int(i128),
    Float(f64),
    Bool(bool),
    Nil,
    Group(Box<Pipeline>, Vec<String>),
}

pub(super) const FUNCTIONS: [&str; 15] = [
    "and", "or", "not", "len", "index", "json", "print", "printf", "println", "eq", "ne", "lt", "le", "gt",
    "ge",
];

pub(super) fn parse(text: &str) -> Result<Vec<Node>, ParseError> {
    let mut parser = Parser { pieces: lex::pieces(text)?, at: 0, variables: vec![String::new()], depth: 0 };
    let lines = text.matches('\n').count() + 1;
    let (nodes, end) = parser.list()?;
    match end {
        None => Ok(nodes),
        Some((Ending::End, line)) => Err(error(line, "unexpected {{end}}")),
        Some((Ending::Else(_), line)) => Err(error(line, "unexpected {{else}}")),
    }
    .map_err(|e: ParseError| ParseError { line: e.line.min(lines), ..e })
}

fn error(line: usize, what: impl Into<String>) -> ParseError {
    ParseError { line, what: what.into() }
}

/// The action that ends a list of nodes.
enum Ending {
    End,
    /// The rest of the action: `if ...` or nothing.
    Else(Vec<Token>),
}

struct Parser {
    pieces: Vec<Piece>,
    at: usize,
    /// Variables in scope; the first is `$`.
    variables: Vec<String>,
    depth: usize,
}

type List = (Vec<Node>, Option<(Ending, usize)>);

impl Parser {
    fn list(&mut self) -> Result<List, ParseError> {
        let mut nodes = Vec::new();
        while let Some(piece) = self.pieces.get(self.at).cloned() {
            self.at += 1;
            let (tokens, line) = match piece {
                Piece::Text(text) => {
                    nodes.push(Node::Text(text));
                    continue;
                }
                Piece::Action(tokens, line) => (tokens, line),
            };
            match tokens.first() {
                Some(Token::Word(word)) if word == "end" => {
                    if tokens.len() > 1 {
                        return Err(error(line, "unexpected operand in end"));
                    }
                    return Ok((nodes, Some((Ending::End, line))));
                }
                Some(Token::Word(word)) if word == "else" => {
                    return Ok((nodes, Some((Ending::Else(tokens[1..].to_vec()), line))));
                }
                Some(Token::Word(word)) if ["if", "with", "range"].contains(&word.as_str()) => {
                    nodes.push(self.block(&word.clone(), &tokens[1..], line)?);
                }
                Some(Token::Word(word))
                    if ["define", "template", "block", "break", "continue"].contains(&word.as_str()) =>
                {
                    return Err(error(line, format!("{{{{{word}}}}} is not supported")));
                }
                _ => nodes.push(Node::Print(self.action(&tokens, line, "command")?)),
            }
        }
        Ok((nodes, None))
    }

    fn block(&mut self, kind: &str, tokens: &[Token], line: usize) -> Result<Node, ParseError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(error(line, "too many blocks inside each other"));
        }
        let scope = self.variables.len();
        let pipeline = self.action(tokens, line, kind)?;
        if pipeline.variables.len() > 1 && kind != "range" {
            return Err(error(line, format!("too many declarations in {kind}")));
        }
        let unexpected = || error(line, "unexpected EOF");
        let inner = self.variables.len();
        let (body, end) = self.list()?;
        self.variables.truncate(inner);
        let otherwise = match end.ok_or_else(unexpected)? {
            (Ending::End, _) => Vec::new(),
            (Ending::Else(rest), line) => match rest.split_first() {
                None => {
                    let (body, end) = self.list()?;
                    match end.ok_or_else(unexpected)? {
                        (Ending::End, _) => body,
                        (Ending::Else(_), line) => return Err(error(line, "expected end; found {{else}}")),
                    }
                }
                // `{{else if x}}` shares its `{{end}}` with the outer block.
                Some((Token::Word(word), rest)) if word == "if" && kind == "if" => {
                    vec![self.block("if", rest, line)?]
                }
                Some(_) => return Err(error(line, "unexpected operand in else")),
            },
        };
        self.variables.truncate(scope);
        self.depth -= 1;
        Ok(match kind {
            "if" => Node::If(pipeline, body, otherwise),
            "with" => Node::With(pipeline, body, otherwise),
            _ => Node::Range(pipeline, body, otherwise),
        })
    }

    /// Parses a whole action, which is one pipeline.
    fn action(&mut self, tokens: &[Token], line: usize, context: &str) -> Result<Pipeline, ParseError> {
        let mut tokens = Tokens { tokens, at: 0, line };
        let pipeline = self.pipeline(&mut tokens, context)?;
        if tokens.at < tokens.tokens.len() {
            return Err(error(line, "unexpected right paren"));
        }
        Ok(pipeline)
    }

    /// Parses a pipeline up to the end or a closing parenthesis.
    fn pipeline(&mut self, tokens: &mut Tokens<'_>, context: &str) -> Result<Pipeline, ParseError> {
        let line = tokens.line;
        let (variables, assigns) = tokens.declaration();
        for name in &variables {
            if assigns && !self.variables.contains(name) {
                return Err(error(line, format!("undefined variable \"${name}\"")));
            }
        }
        let mut commands = Vec::new();
        loop {
            let mut operands = Vec::new();
            loop {
                match tokens.peek() {
                    None | Some(Token::Pipe | Token::Close) => break,
                    Some(_) => operands.push(self.operand(tokens)?),
                }
            }
            if operands.is_empty() {
                return Err(error(line, format!("missing value for {context}")));
            }
            if operands.len() > 1 && !matches!(operands[0], Operand::Function(_)) {
                return Err(error(line, "can't give argument to non-function"));
            }
            if !commands.is_empty() && !matches!(operands[0], Operand::Function(_)) {
                return Err(error(line, "non executable command in pipeline"));
            }
            commands.push(Command { operands });
            if tokens.peek() != Some(&Token::Pipe) {
                break;
            }
            tokens.at += 1;
        }
        // Only later actions may use the variables.
        if !assigns {
            self.variables.extend(variables.iter().cloned());
        }
        Ok(Pipeline { variables, assigns, commands })
    }

    fn operand(&mut self, tokens: &mut Tokens<'_>) -> Result<Operand, ParseError> {
        let line = tokens.line;
        let token = tokens.peek().cloned();
        tokens.at += 1;
        Ok(match token {
            Some(Token::Field(name, _)) => {
                let mut path = if name.is_empty() { Vec::new() } else { vec![name] };
                path.extend(tokens.fields());
                Operand::Dot(path)
            }
            Some(Token::Variable(name)) => {
                if !self.variables.contains(&name) {
                    return Err(error(line, format!("undefined variable \"${name}\"")));
                }
                Operand::Variable(name, tokens.fields())
            }
            Some(Token::Word(word)) => match word.as_str() {
                "true" | "false" => Operand::Bool(word == "true"),
                "nil" => Operand::Nil,
                _ if FUNCTIONS.contains(&word.as_str()) => Operand::Function(word),
                _ => return Err(error(line, format!("function {word:?} not defined"))),
            },
            Some(Token::Text(text)) => Operand::Text(text),
            Some(Token::Int(n)) => Operand::Int(n),
            Some(Token::Float(x)) => Operand::Float(x),
            Some(Token::Open) => {
                self.depth += 1;
                if self.depth > MAX_DEPTH {
                    return Err(error(line, "too many parentheses inside each other"));
                }
                let inner = self.pipeline(tokens, "parenthesized pipeline")?;
                if tokens.peek() != Some(&Token::Close) {
                    return Err(error(line, "unclosed left paren"));
                }
                tokens.at += 1;
                self.depth -= 1;
                Operand::Group(Box::new(inner), tokens.fields())
            }
            Some(token) => return Err(error(line, format!("unexpected {} in operand", show(&token)))),
            None => return Err(error(line, "missing value for command")),
        })
    }
}

fn show(token: &Token) -> &'static str {
    match token {
        Token::Comma => "\",\"",
        Token::Declare => "\":=\"",
        Token::Assign => "\"=\"",
        Token::Pipe => "\"|\"",
        Token::Close => "\")\"",
        _ => "token",
    }
}

struct Tokens<'t> {
    tokens: &'t [Token],
    at: usize,
    line: usize,
}

impl Tokens<'_> {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    /// `.A.B` directly after an operand.
    fn fields(&mut self) -> Vec<String> {
        let mut path = Vec::new();
        while let Some(Token::Field(name, false)) = self.peek()
            && !name.is_empty()
        {
            path.push(name.clone());
            self.at += 1;
        }
        path
    }

    /// `$a :=`, `$a =`, `$a, $b :=` at the beginning.
    fn declaration(&mut self) -> (Vec<String>, bool) {
        let found = match self.tokens.get(self.at..).unwrap_or_default() {
            [
                Token::Variable(a),
                Token::Comma,
                Token::Variable(b),
                op @ (Token::Declare | Token::Assign),
                ..,
            ] => Some((vec![a.clone(), b.clone()], op, 4)),
            [Token::Variable(a), op @ (Token::Declare | Token::Assign), ..] => Some((vec![a.clone()], op, 2)),
            _ => None,
        };
        match found {
            Some((names, op, taken)) => {
                let assigns = *op == Token::Assign;
                self.at += taken;
                (names, assigns)
            }
            None => (Vec::new(), false),
        }
    }
}
