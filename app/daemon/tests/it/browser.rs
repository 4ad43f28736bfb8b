//! The live picture in a browser, Debian's chromium, which is asked over a pipe (the DevTools protocol). Without a browser the tests say
//! so and pass.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weave_api::NetworkView;
use weave_api::network_view::{Connection, Container, Event, Link, Name, Peer, Totals};
use weave_api::report::{PathQuality, Traffic};
use weave_daemon::testing::Access;

use crate::http::serve;
use crate::picture::{SharedView, peer};

const DEADLINE: Duration = Duration::from_secs(60);

/// A browser with one page.
struct Browser {
    process: Child,
    commands: File,
    messages: mpsc::Receiver<Value>,
    session: Option<String>,
    next: u64,
    _folder: tempfile::TempDir,
}

impl Browser {
    fn start() -> Option<Browser> {
        let installed =
            Command::new("chromium").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if !installed.is_ok_and(|status| status.success()) {
            println!("SKIPPED: chromium is not installed; the live picture is not tried in a browser");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let [to, from] = ["to", "from"].map(|name| folder.path().join(name));
        for path in [&to, &from] {
            nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        }
        let script = "exec chromium --headless --no-sandbox --disable-gpu --disable-dev-shm-usage --remote-debugging-pipe \
                      --user-data-dir=\"$0\"/profile about:blank 3<\"$0\"/to 4>\"$0\"/from";
        let process = Command::new("sh")
            .args(["-c", script])
            .arg(folder.path())
            .env("HOME", folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Both wait for the other end of each pipe, in the same order.
        let commands = OpenOptions::new().write(true).open(to).unwrap();
        let answers = BufReader::new(File::open(from).unwrap());
        let (sender, messages) = mpsc::channel();
        std::thread::spawn(move || {
            for message in answers.split(0) {
                let Ok(message) = message else { return };
                let _ = sender.send(serde_json::from_slice(&message).unwrap());
            }
        });
        let mut browser = Browser { process, commands, messages, session: None, next: 0, _folder: folder };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" }))["targetId"].clone();
        let attach = json!({ "targetId": target, "flatten": true });
        let session = browser.call("Target.attachToTarget", attach)["sessionId"].as_str().unwrap().to_owned();
        browser.session = Some(session);
        Some(browser)
    }

    fn call(&mut self, method: &str, params: Value) -> Value {
        self.next += 1;
        let mut command = json!({ "id": self.next, "method": method, "params": params });
        if let Some(session) = &self.session {
            command["sessionId"] = json!(session);
        }
        self.commands.write_all(format!("{command}\0").as_bytes()).unwrap();
        loop {
            let message = self.messages.recv_timeout(DEADLINE).unwrap_or_else(|e| panic!("{method}: {e}"));
            if message["id"] == self.next {
                assert!(message.get("error").is_none(), "{method}: {message}");
                return message["result"].clone();
            }
        }
    }

    fn evaluate(&mut self, expression: &str) -> Value {
        let params = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let result = self.call("Runtime.evaluate", params);
        assert!(result.get("exceptionDetails").is_none(), "{expression}: {result}");
        result["result"]["value"].clone()
    }

    /// Waits until an expression has this value.
    #[track_caller]
    fn wait(&mut self, expression: &str, expected: &Value) {
        let start = Instant::now();
        loop {
            let value = self.evaluate(expression);
            if value == *expected {
                return;
            }
            assert!(start.elapsed() < DEADLINE, "{expression} is {value}, not {expected}");
        }
    }

    fn open(&mut self, url: &str, width: u32, is_phone: bool, theme: &str) {
        let metrics = json!({ "width": width, "height": 800, "deviceScaleFactor": 1, "mobile": is_phone });
        self.call("Emulation.setDeviceMetricsOverride", metrics);
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": theme }] });
        self.call("Emulation.setEmulatedMedia", features);
        self.call("Page.navigate", json!({ "url": url }));
        self.wait("document.querySelectorAll('#peers tbody tr').length > 0", &json!(true));
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn name(number: usize) -> String {
    format!("8a:00:00:00:{:02x}:{:02x}", number / 256, number % 256)
}

/// A full mesh with these nicknames.
fn mesh(nicknames: &[String]) -> NetworkView {
    let peer = |(number, nickname): (usize, &String)| Peer {
        name: name(number),
        nick_name: nickname.clone(),
        reachable: true,
        via: if number == 0 { String::new() } else { name(number) },
        reached: if number == 0 { "this peer" } else { "fastdp" }.to_owned(),
        ips: 1000,
        percent: 100.0 / nicknames.len() as f64,
        ..Peer::default()
    };
    let connection = |(number, nickname): (usize, &String)| Connection {
        address: format!("192.0.2.1:{number}"),
        state: "established".to_owned(),
        name: name(number),
        nick_name: nickname.clone(),
        overlay: Some("fastdp".to_owned()),
        encrypted: Some(false),
        mtu: Some(1376),
        traffic: Some(Traffic::default()),
        quality: Some(PathQuality { round_trip: Some(420), probes: 20, lost: 1 }),
        ..Connection::default()
    };
    let count = nicknames.len();
    let links: Vec<_> = (0..count).flat_map(|a| (a + 1..count).map(move |b| Link(a, b, true))).collect();
    NetworkView {
        time: 1_800_000_000_000,
        version: "3.0.0".to_owned(),
        ready: true,
        name: name(0),
        nick_name: nicknames[0].clone(),
        peers: nicknames.iter().enumerate().map(peer).collect(),
        totals: Totals { peers: count, links: links.len(), containers: 1, names: 1 },
        links,
        connections: nicknames.iter().enumerate().skip(1).map(connection).collect(),
        range: "10.32.0.0/12".to_owned(),
        allocation: "ready".to_owned(),
        ..NetworkView::default()
    }
}

/// The page of a server that shows `view`.
async fn page(view: &SharedView) -> String {
    let addr = serve(&peer(view), Access::Status).await;
    format!("http://{addr}/picture")
}

async fn in_browser(url: String, test: impl FnOnce(&mut Browser, &str) + Send + 'static) {
    let test = move || {
        if let Some(mut browser) = Browser::start() {
            test(&mut browser, &url);
        }
    };
    tokio::task::spawn_blocking(test).await.unwrap();
}

#[tokio::test]
async fn page_shows_peers_connections_and_changes() {
    let view = SharedView::default();
    *view.lock().unwrap() = mesh(&["host1", "host2", "host3"].map(str::to_owned));
    let url = page(&view).await;
    in_browser(url, move |browser, url| {
        browser.open(url, 1200, false, "light");
        let row = |n: usize| format!("Array.from(document.querySelectorAll('#peers tbody tr')[{n}].cells, (c) => c.textContent)");
        browser.wait(
            &row(1),
            &json!(["host2 (8a:00:00:00:00:01)", "fastdp", "no", "0.42 ms", "5 %", "0/s", "0/s", "1376", "1,000 (33.3 %)", "", ""]),
        );
        browser.wait("document.querySelectorAll('#graph line.link.fastdp').length", &json!(2));
        browser.wait("document.querySelectorAll('#graph .node').length", &json!(3));
        browser.wait("document.getElementById('problems').textContent", &json!("none"));
        let colour = "getComputedStyle(document.body).backgroundColor";
        assert_eq!(browser.evaluate(colour), "rgb(255, 255, 255)");

        let mut changed = view.lock().unwrap();
        changed.peers.truncate(2);
        changed.connections[1] = Connection {
            address: "192.0.2.1:2".to_owned(),
            state: "failed".to_owned(),
            reason: "timed out".to_owned(),
            ..Connection::default()
        };
        changed.links.truncate(1);
        changed.problems = vec!["192.0.2.1:2: failed, timed out".to_owned()];
        drop(changed);
        browser.wait("document.getElementById('problems').firstChild.textContent", &json!("192.0.2.1:2: failed, timed out"));
        // A peer that has vanished is shown as lost for a while.
        browser.wait("document.querySelectorAll('#graph .node.lost').length", &json!(1));
        let last = browser.evaluate(&row(2));
        assert!(last[1].as_str().unwrap().starts_with("not reached since "), "{last}");

        // With the keyboard: the button of a peer has the focus, and keeps it when the next view comes.
        browser.evaluate("document.querySelector('#peers tbody button').focus()");
        for kind in ["keyDown", "keyUp"] {
            let key = json!({ "type": kind, "key": "Enter", "code": "Enter", "text": "\r", "windowsVirtualKeyCode": 13 });
            browser.call("Input.dispatchKeyEvent", key);
        }
        browser.wait("document.querySelector('#details p').textContent", &json!("host1 (8a:00:00:00:00:00): this peer"));
        view.lock().unwrap().problems = vec!["another".to_owned()];
        browser.wait("document.getElementById('problems').firstChild.textContent", &json!("another"));
        browser.wait("document.activeElement.textContent", &json!("host1 (8a:00:00:00:00:00)"));

        // On a phone, in the dark: nothing is wider than the screen.
        browser.open(url, 360, true, "dark");
        browser.wait("document.documentElement.scrollWidth", &json!(360));
        assert_eq!(browser.evaluate(colour), "rgb(20, 23, 27)");
    })
    .await;
}

#[tokio::test]
async fn text_of_others_runs_no_script() {
    let hostile = [
        "<script>window.hacked=1</script>",
        "\"><img src=x onerror=window.hacked=1>",
        "</script><svg onload=window.hacked=1>",
        "\u{202e}\u{2066}gnp.exe\u{200b}",
        "\u{1b}]0;x\u{7}'-window.hacked-'${window.hacked=1}",
        "__proto__",
        "javascript:window.hacked=1",
    ];
    let mut hostile_view = mesh(&hostile.map(str::to_owned));
    let text = || hostile.join(" ");
    hostile_view.problems = vec![text()];
    hostile_view.allocation = text();
    hostile_view.version = text();
    hostile_view.events = vec![Event { time: 1, text: text() }];
    hostile_view.containers = vec![Container { id: text(), addresses: vec![text()] }];
    hostile_view.names = hostile
        .iter()
        .map(|hostname| Name {
            hostname: (*hostname).to_owned(),
            container_id: text(),
            address: text(),
            origin: name(1),
        })
        .collect();
    for connection in &mut hostile_view.connections {
        connection.overlay = Some(hostile[1].to_owned());
        connection.reason = text();
        connection.address = text();
    }
    for peer in &mut hostile_view.peers {
        peer.reached = text();
    }
    // Names are shown as they are.
    hostile_view.peers[6].name = hostile[0].to_owned();
    let view = SharedView::default();
    *view.lock().unwrap() = hostile_view;
    let url = page(&view).await;
    in_browser(url, move |browser, url| {
        browser.open(url, 1200, false, "light");
        browser.wait("document.querySelectorAll('#names tbody tr').length", &json!(hostile.len()));
        browser.evaluate("document.querySelectorAll('#peers tbody button')[3].click()");
        browser.wait("document.querySelectorAll('#details p').length > 2", &json!(true));
        let shown = browser.evaluate("document.getElementById('names').textContent");
        assert!(hostile.iter().all(|text| shown.as_str().unwrap().contains(text.trim_end_matches('.'))), "{shown}");
        assert_eq!(browser.evaluate("typeof window.hacked"), "undefined");
        let elements = "document.querySelectorAll('img, iframe, script:not([src]), main script, svg[onload], a').length";
        assert_eq!(browser.evaluate(elements), 0);
        // What else could run one is refused by the policy of the page.
        let inline = "(() => { const s = document.createElement('script'); s.textContent = 'window.hacked = 1'; document.body.append(s); \
                      return typeof window.hacked; })()";
        assert_eq!(browser.evaluate(inline), "undefined");
    })
    .await;
}

/// A hundred peers, 4,950 links: the elements of the page do not grow with the square of the peers.
#[tokio::test]
async fn a_hundred_peers_are_drawn_with_few_elements() {
    let nicknames: Vec<_> = (0..100).map(|n| format!("host{n}")).collect();
    let view = SharedView::default();
    *view.lock().unwrap() = mesh(&nicknames);
    let url = page(&view).await;
    in_browser(url, move |browser, url| {
        browser.open(url, 1200, false, "light");
        browser.wait("document.querySelectorAll('#graph .node').length", &json!(100));
        let drawn = "document.querySelectorAll('#graph *').length";
        let elements = browser.evaluate(drawn);
        assert!(elements.as_u64().unwrap() < 1000, "{elements} elements for 4,950 links");
        let time = browser.evaluate("(() => { const t = performance.now(); for (let i = 0; i < 10; i++) draw(); return (performance.now() - t) / 10; })()");
        println!("a view of 100 peers is drawn in {time} ms");
        browser.evaluate("document.getElementById('filter').value = 'host9'; document.getElementById('filter').dispatchEvent(new Event('input'))");
        browser.wait("document.querySelectorAll('#peers tbody tr:not([hidden])').length", &json!(11));
    })
    .await;
}
