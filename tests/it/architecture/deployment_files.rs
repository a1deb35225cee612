//! What is deployed: the manifests are valid and agree with each other, with the compose file and with the settings.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use crate::support::repository::root;
use regatta::__internals::config;
use regatta::__internals::config::ConfigInputs;
use serde_json::Value;

/// Prints every document of the YAML files named as arguments, as one JSON list.
const YAML_TO_JSON: &str = "import json, sys, yaml
documents = [d for f in sys.argv[1:] for d in yaml.safe_load_all(open(f)) if d]
json.dump(documents, sys.stdout)";

/// Oldest Kubernetes whose API the manifests keep to, and the newest there was when they were written.
const KUBERNETES: [&str; 2] = ["1.30", "1.34"];

/// Runs a program of the tests' own Python environment.
fn python(program: &str, arguments: &[&str], files: &[PathBuf]) -> Output {
    let path = root().join(".cache/venv/bin").join(program);
    assert!(path.exists(), "{} is missing: run `make deps-test` once", path.display());
    Command::new(path).args(arguments).args(files).output().unwrap()
}

fn manifests() -> Vec<PathBuf> {
    let folder = std::fs::read_dir(root().join("k8s")).unwrap();
    let mut files: Vec<_> = folder.map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|ending| ending == "yaml"));
    files.sort();
    assert!(files.len() > 5, "{files:?}");
    files
}

fn documents(files: &[PathBuf]) -> Vec<Value> {
    let output = python("python", &["-c", YAML_TO_JSON], files);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn text<'a>(document: &'a Value, pointer: &str) -> &'a str {
    let found = document.pointer(pointer).and_then(Value::as_str);
    found.unwrap_or_else(|| panic!("no text at {pointer} of {document:#}"))
}

/// The one document of this kind and name.
fn one<'a>(documents: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let fits = |document: &&Value| document["kind"] == kind && document["metadata"]["name"] == name;
    let found: Vec<_> = documents.iter().filter(fits).collect();
    assert_eq!(found.len(), 1, "{kind} {name}");
    found[0]
}

/// The deployment's or stateful set's one container.
fn container(workload: &Value) -> &Value {
    workload.pointer("/spec/template/spec/containers/0").unwrap()
}

/// The settings that a map of environment variables stands for.
fn settings(environment: &Value) -> config::settings::Config {
    let variables = environment.as_object().unwrap().iter();
    let environment: BTreeMap<String, String> =
        variables.map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned())).collect();
    let inputs = ConfigInputs { environment, folder: "/".into(), ..ConfigInputs::default() };
    config::load(&inputs).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn every_manifest_is_strictly_valid() {
    for version in KUBERNETES {
        let arguments = ["--strict", "--no-warn", "--kubernetes-version", version];
        let output = python("kubernetes-validate", &arguments, &manifests());
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
    }
}

#[test]
fn a_misspelt_manifest_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("service.yaml");
    std::fs::write(&file, "{apiVersion: v1, kind: Service, metadata: {name: x}, spec: {portz: []}}").unwrap();
    let output = python("kubernetes-validate", &["--strict"], &[file]);
    assert!(!output.status.success(), "{output:?}");
}

#[test]
fn manifests_are_in_one_namespace_that_comes_first() {
    let documents = documents(&manifests());
    assert_eq!(documents[0]["kind"], "Namespace");
    let namespace = &documents[0]["metadata"]["name"];
    for document in &documents[1..] {
        assert_eq!(&document["metadata"]["namespace"], namespace, "{document:#}");
    }
    assert!(!root().join("k8s/kustomization.yaml").exists(), "kubectl apply -f k8s/ would refuse it");
}

#[test]
fn selectors_find_the_pods_they_mean() {
    let documents = documents(&manifests());
    for (kind, name) in [("Deployment", "regatta"), ("StatefulSet", "regatta-redis")] {
        let workload = one(&documents, kind, name);
        let labels = workload.pointer("/spec/template/metadata/labels").unwrap();
        let holds = |selector: &Value| {
            let wanted = selector.as_object().unwrap();
            assert!(wanted.iter().all(|(key, value)| &labels[key] == value), "{selector} {labels}");
        };
        holds(&workload["spec"]["selector"]["matchLabels"]);
        holds(&one(&documents, "Service", name)["spec"]["selector"]);
        holds(&one(&documents, "NetworkPolicy", name)["spec"]["podSelector"]["matchLabels"]);
        if kind == "Deployment" {
            holds(&one(&documents, "PodDisruptionBudget", name)["spec"]["selector"]["matchLabels"]);
            assert_eq!(
                one(&documents, "HorizontalPodAutoscaler", name)["spec"]["scaleTargetRef"]["kind"],
                kind
            );
        }
    }
    let redis = one(&documents, "StatefulSet", "regatta-redis");
    assert_eq!(redis["spec"]["serviceName"], "regatta-redis");
}

#[test]
fn every_port_that_is_named_exists() {
    let documents = documents(&manifests());
    let port = |container: &Value, name: &str| {
        let mut ports = container["ports"].as_array().unwrap().iter();
        let found = ports.find(|port| port["name"] == name).unwrap_or_else(|| panic!("no port {name}"));
        found["containerPort"].as_u64().unwrap()
    };
    let app = container(one(&documents, "Deployment", "regatta"));
    let redis = container(one(&documents, "StatefulSet", "regatta-redis"));
    let settings = settings(&one(&documents, "ConfigMap", "regatta")["data"]);

    assert_eq!(port(app, "http"), u64::from(settings.listen[0].internet().unwrap().port()));
    assert_eq!(port(app, "admin"), u64::from(settings.admin.listen[0].internet().unwrap().port()));
    for address in settings.listen.iter().chain(&settings.admin.listen) {
        let address = address.internet().unwrap();
        assert!(
            address.is_ipv6() && address.ip().is_unspecified(),
            "the kubelet probes the pod's own address"
        );
    }
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        assert_eq!(text(app, &format!("/{probe}/httpGet/port")), "admin");
    }
    assert_eq!(text(one(&documents, "Service", "regatta"), "/spec/ports/0/targetPort"), "http");
    assert_eq!(text(one(&documents, "Service", "regatta-redis"), "/spec/ports/0/targetPort"), "redis");
    let backend = one(&documents, "Ingress", "regatta").pointer("/spec/rules/0/http/paths/0/backend/service");
    assert_eq!(
        backend.unwrap()["port"]["name"],
        one(&documents, "Service", "regatta")["spec"]["ports"][0]["name"]
    );
    let policy = one(&documents, "NetworkPolicy", "regatta");
    let allowed: Vec<_> =
        (0..2).map(|index| text(policy, &format!("/spec/ingress/{index}/ports/0/port"))).collect();
    assert_eq!(allowed, ["http", "admin"]);
    let egress = policy.pointer("/spec/egress/0/ports/0/port").unwrap();
    assert_eq!(egress.as_u64().unwrap(), port(redis, "redis"));
}

#[test]
fn settings_of_the_manifests_are_settings_of_regatta() {
    let documents = documents(&manifests());
    let mut environment = one(&documents, "ConfigMap", "regatta")["data"].clone();
    let secret = one(&documents, "Secret", "regatta")["stringData"].as_object().unwrap();
    environment.as_object_mut().unwrap().extend(secret.clone());
    let settings = settings(&environment);

    let redis = url::Url::parse(text(&environment, "/REDIS_URL")).unwrap();
    let service = one(&documents, "Service", "regatta-redis");
    assert_eq!(redis.host_str(), service["metadata"]["name"].as_str());
    assert_eq!(redis.port().map(u64::from), service["spec"]["ports"][0]["port"].as_u64());

    let pod = &one(&documents, "Deployment", "regatta")["spec"]["template"]["spec"];
    let patience = Duration::from_secs(pod["terminationGracePeriodSeconds"].as_u64().unwrap());
    let drain = settings.drain;
    assert!(drain.timeout + Duration::from_secs(5) <= patience, "cut by Kubernetes before its drain ends");
    assert!(drain.grace >= Duration::from_secs(5), "endpoints take seconds to change");
    let references: Vec<_> = (0..2).map(|index| &pod["containers"][0]["envFrom"][index]).collect();
    assert_eq!(references[0]["configMapRef"]["name"], "regatta");
    assert_eq!(references[1]["secretRef"]["name"], "regatta");
}

/// A quantity of Kubernetes in thousandths of a core, or in MiB.
fn quantity(value: &Value) -> u64 {
    let text = value.as_str().unwrap_or_else(|| panic!("{value} is no text"));
    let number = |end: &str| text.strip_suffix(end).map(|number| number.parse::<u64>().unwrap());
    number("m").or_else(|| number("Mi")).unwrap_or_else(|| text.parse::<u64>().unwrap() * 1000)
}

#[test]
fn a_rollout_finds_its_place_on_a_small_node() {
    let documents = documents(&manifests());
    let [app, redis] = [("Deployment", "regatta"), ("StatefulSet", "regatta-redis")]
        .map(|(kind, name)| container(one(&documents, kind, name))["resources"].clone());
    let scaler = &one(&documents, "HorizontalPodAutoscaler", "regatta")["spec"];
    let rolling = &one(&documents, "Deployment", "regatta")["spec"]["strategy"]["rollingUpdate"];
    let pods = scaler["minReplicas"].as_u64().unwrap() + rolling["maxSurge"].as_u64().unwrap();
    assert_eq!(rolling["maxUnavailable"], 0);
    let wanted = |what: &str| pods * quantity(&app["requests"][what]) + quantity(&redis["requests"][what]);
    // Of two cores and 2 GiB the cluster itself takes about half.
    assert!(wanted("cpu") <= 500, "{} thousandths of a core", wanted("cpu"));
    assert!(wanted("memory") <= 1024, "{} MiB", wanted("memory"));

    // What decides about pods must not be a share of the request, which says nothing of what they can do.
    let target = &scaler["metrics"][0]["resource"]["target"];
    assert_eq!(target["type"], "AverageValue", "{target}");
    let (most, worth) = (quantity(&app["limits"]["cpu"]), quantity(&target["averageValue"]));
    assert_eq!(most % 1000, 0, "workers.count = auto takes whole cores of the limit");
    assert_eq!(worth * 2, most, "at half of what its workers can do another pod comes");
    let budget = &one(&documents, "PodDisruptionBudget", "regatta")["spec"];
    assert_eq!(budget["maxUnavailable"], 1, "one pod alone could never leave otherwise");
}

#[test]
fn both_families_of_addresses_are_served() {
    let documents = documents(&manifests());
    for name in ["regatta", "regatta-redis"] {
        assert_eq!(one(&documents, "Service", name)["spec"]["ipFamilyPolicy"], "PreferDualStack");
    }
    let settings = settings(&one(&documents, "ConfigMap", "regatta")["data"]);
    let trusted = settings.proxy;
    for hop in ["10.1.2.3", "::ffff:10.1.2.3", "fd00::7"] {
        assert!(trusted.trusts(hop.parse().unwrap()), "{hop}");
    }
    assert!(
        settings.admin.allowed_hosts.iter().any(|host| host == "*.regatta.svc"),
        "{:?}",
        settings.admin.allowed_hosts
    );
}

#[test]
fn variables_that_kubernetes_injects_for_these_services_would_not_keep_a_pod_from_starting() {
    let documents = documents(&manifests());
    let mut environment = one(&documents, "ConfigMap", "regatta")["data"].clone();
    let before = environment.as_object().unwrap().len();
    for name in ["regatta", "regatta-redis"] {
        let name = name.to_uppercase().replace('-', "_");
        let port = format!("{name}_PORT_6379_TCP");
        for (variable, value) in [
            (format!("{name}_SERVICE_HOST"), "10.96.0.7"),
            (format!("{name}_SERVICE_PORT"), "6379"),
            (format!("{name}_SERVICE_PORT_REDIS"), "6379"),
            (format!("{name}_PORT"), "tcp://10.96.0.7:6379"),
            (port.clone(), "tcp://10.96.0.7:6379"),
            (format!("{port}_PROTO"), "tcp"),
            (format!("{port}_PORT"), "6379"),
            (format!("{port}_ADDR"), "10.96.0.7"),
        ] {
            environment[variable] = value.into();
        }
    }
    assert_eq!(environment.as_object().unwrap().len(), before + 16);
    assert_eq!(settings(&environment).listen.len(), 1);
}

#[test]
fn pods_may_do_no_more_than_they_need() {
    let documents = documents(&manifests());
    for (kind, name) in [("Deployment", "regatta"), ("StatefulSet", "regatta-redis")] {
        let workload = one(&documents, kind, name);
        let pod = &workload["spec"]["template"]["spec"];
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
        assert!(pod["securityContext"]["runAsUser"].as_u64().unwrap() > 0);
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
        assert_eq!(pod["enableServiceLinks"], false);
        assert_eq!(pod["automountServiceAccountToken"], false);
        let container = container(workload);
        assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
        assert_eq!(container["securityContext"]["allowPrivilegeEscalation"], false);
        assert_eq!(container["securityContext"]["capabilities"]["drop"][0], "ALL");
        for bound in ["requests", "limits"] {
            assert!(container["resources"][bound]["memory"].is_string(), "{name} {bound}");
        }
    }
}

#[test]
fn compose_scales_loses_no_view_and_sets_only_what_there_is() {
    let documents = documents(&[root().join("docker-compose.yml")]);
    let compose = &documents[0];
    assert!(compose.get("version").is_none() && compose.get("name").is_none(), "v2 warns, v1 refuses");

    let app = &compose["services"]["app"];
    for forbidden in ["container_name", "ports", "hostname"] {
        assert!(app.get(forbidden).is_none(), "{forbidden} forbids a second replica");
    }
    let mut environment = app["environment"].clone();
    // What compose puts in when no one sets the variable.
    environment["REGATTA_SESSION__SECRETS"] = "".into();
    let settings = settings(&environment);
    assert!(settings.session.secrets.is_empty());
    let patience = humantime::parse_duration(text(app, "/stop_grace_period")).unwrap();
    assert!(settings.drain.timeout < patience, "cut by Docker before its drain ends");

    let redis = &compose["services"]["redis"];
    let command: Vec<_> = redis["command"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert!(command.windows(2).any(|pair| pair == ["--appendonly", "yes"]), "{command:?}");
    assert!(command.windows(2).any(|pair| pair == ["--maxmemory-policy", "noeviction"]), "{command:?}");
    assert!(command.windows(2).any(|pair| pair[0] == "--maxmemory" && pair[1] != "0"), "{command:?}");
    let volume = text(redis, "/volumes/0").split(':').next().unwrap();
    assert!(compose["volumes"].as_object().unwrap().contains_key(volume), "a named volume");
}

#[test]
fn compose_and_kubernetes_run_the_same_images() {
    let compose = &documents(&[root().join("docker-compose.yml")])[0];
    let documents = documents(&manifests());
    let app = container(one(&documents, "Deployment", "regatta"));
    assert_eq!(app["image"], compose["services"]["app"]["image"]);
    let redis = container(one(&documents, "StatefulSet", "regatta-redis"));
    assert_eq!(redis["image"], compose["services"]["redis"]["image"]);
    // Both stages on one Debian release, or the binary finds a glibc older than its own.
    let dockerfile = std::fs::read_to_string(root().join("docker/Dockerfile")).unwrap();
    let bases: Vec<_> = dockerfile.lines().filter(|line| line.starts_with("FROM ")).collect();
    assert!(bases[0].contains("bookworm") && bases[1].contains("debian12"), "{bases:?}");
}

/// The image's first layer builds the dependencies alone, against empty sources: those that the manifest names must all
/// be there, or no image is built.
#[test]
fn the_images_empty_sources_are_all_that_the_manifest_names() {
    let dockerfile = std::fs::read_to_string(root().join("docker/Dockerfile")).unwrap().replace("\\\n", " ");
    let step = dockerfile.lines().find_map(|line| line.strip_prefix("RUN mkdir -p src/bin")).unwrap();
    let (empty, _) = step.split_once("&& cargo build").unwrap();
    let folder = tempfile::tempdir().unwrap();
    for file in ["Cargo.toml", "Cargo.lock"] {
        std::fs::copy(root().join(file), folder.path().join(file)).unwrap();
    }
    let run = |command: &mut Command| {
        let output = command.current_dir(folder.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    run(Command::new("sh").args(["-c", &format!("mkdir -p src/bin{empty}")]));
    run(Command::new("cargo").args(["metadata", "--no-deps", "--offline", "--format-version", "1"]));
}
