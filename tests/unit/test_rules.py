"""Each rule of `ocis2i lint` with a script that breaks it and one that does not.

Most of the bad ones are taken in spirit from learning-s2i, s2i-java-container and
s2i-binary-container.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ocis2i.builder_checks import Context, ScriptFile, check_context, check_image
from ocis2i.errors import UsageError
from ocis2i.image_files import Entry, Tree
from ocis2i.manifest import ImageConfig, RuntimeConfig
from ocis2i.reference import Platform
from ocis2i.rules import RULES, Finding, parse_codes, table
from ocis2i.s2i import read_contract
from ocis2i.script_checks import Place, check_script

PROJECT = Path(__file__).parents[2]
SCRIPTS = "/usr/libexec/s2i"

ASSEMBLE = "#!/bin/sh\nset -e\ncp -R /tmp/src/. ./\n"
RUN = '#!/bin/sh\nset -e\nexec ./app "$@"\n'
SAVE = "#!/bin/sh\nset -e\ncd /work\nexec tar -cf - .m2\n"
USAGE = "#!/bin/sh\ncat <<'TEXT'\nUse me; exec nothing, $@ nothing.\nTEXT\n"


def codes(found: list[Finding]) -> set[str]:
    assert all(one.text().count("\n") == 3 for one in found)
    return {one.rule.code for one in found}


def of_script(text: str | bytes, name: str, **where: object) -> list[Finding]:
    content = text.encode() if isinstance(text, str) else text
    return check_script(content, Place(name, name, SCRIPTS, **where))  # type: ignore[arg-type]


# --- scripts ----------------------------------------------------------------------------------

BAD = [
    ("S2I003", "assemble", ASSEMBLE.replace("\n", "\r\n"), 1),
    ("S2I004", "assemble", "\ufeff" + ASSEMBLE, 1),
    ("S2I005", "run", "exec ./app \"$@\"\n", 1),
    ("S2I007", "assemble", "#!/bin/sh\nset -e\necho 'oops\n", 3),
    # s2i-binary-container: with no `set -e` only the last command's status tells.
    ("S2I010", "assemble", "#!/bin/bash\ncd /tmp/src\nmake\necho done\n", 1),
    ("S2I010", "assemble", "#!/bin/bash\n# set -e\necho 'set -e'\nmake; make install\n", 1),
    # learning-s2i: save-artifacts has `pushd` under /bin/sh.
    ("S2I011", "save-artifacts", "#!/bin/sh -e\npushd /go >/dev/null\ntar cf - pkg\n", 2),
    ("S2I011", "assemble", "#!/bin/sh\nset -e\nif [[ -f x ]]; then make; fi\n", 3),
    # s2i-java-container: /bin/sh is dash where the image is Debian's or Ubuntu's.
    ("S2I011", "assemble", "#!/bin/sh -e\nfunction get_dir() {\n  ls\n}\n", 2),
    ("S2I011", "assemble", '#!/bin/sh -e\nif [ "${DIR:0:1}" = "/" ]; then exit 1; fi\n', 2),
    ("S2I011", "assemble", "#!/bin/sh -e\nif make -q &>/dev/null; then make; fi\n", 2),
    ("S2I011", "assemble", '#!/bin/sh -e\nif [ "$(ls | wc -l)" == 1 ]; then make; fi\n', 2),
    ("S2I011", "run", '#!/bin/sh\nset -eo pipefail\nexec ./app "$@"\n', 2),
    ("S2I011", "assemble", "#!/bin/sh -e\nargs=(a b)\nmake\n", 2),
    ("S2I011", "assemble", "#!/bin/sh -e\nmake\nmake <<<y\n", 3),
    ("S2I011", "assemble", "#!/bin/sh -e\ndiff <(ls a) b\n", 2),
    ("S2I011", "assemble", "#!/bin/sh -e\nfor ((i = 0; i < 3; i++)); do make; done\n", 2),
    ("S2I011", "assemble", '#!/bin/sh -e\necho "${NAME^^} ${!NAME}"\n', 2),
    # learning-s2i: run has no `exec` and no "$@".
    ("S2I012", "run", "#!/bin/sh -e\n${APP_ROOT}/bin/app \"$@\"\n", 2),
    # s2i-java-container's tomcat: catalina.sh run without exec.
    ("S2I012", "run", '#!/bin/bash -e\nln -s /dep/*.war webapps/\ncatalina.sh run "$@"\n', 3),
    ("S2I013", "run", "#!/bin/sh -e\nexec ./app\n", 2),
    ("S2I013", "run", '#!/bin/sh -e\nset -- httpd -f\nexec "$@"\n', 3),
    # s2i-binary-container: `exec .../binary $ARGS`; arguments given to run are dropped.
    ("S2I013", "run", "#!/bin/bash -e\nexec /opt/app-root/src/bin/binary $ARGS\n", 2),
    # s2i-nodejs-container: $1 is looked at, and reaches no program.
    ("S2I013", "run", '#!/bin/bash -e\n[ "$1" == --debug ] && exec /bin/bash\nexec npm start\n', 3),
    ("S2I013", "run", '#!/bin/sh -e\necho "starting with $*"\nexec ./app\n', 3),
    ("S2I014", "run", "#!/bin/sh -e\nexec ./app $@\n", 2),
    # s2i-binary-container: the listing is used unquoted.
    ("S2I015", "assemble", "#!/bin/bash -e\nname=$(ls /tmp/src)\nmv /tmp/src/$name bin/app\n", 3),
    ("S2I015", "assemble", "#!/bin/bash -e\nfor one in $(ls src); do\n  make \"$one\"\ndone\n", 2),
    ("S2I015", "assemble", "#!/bin/bash -e\nmv `ls *.jar` app.jar\n", 2),
    # s2i-binary-container: chmod +x at run time.
    ("S2I016", "run", '#!/bin/sh -e\nchmod +x bin/binary\nexec bin/binary "$@"\n', 2),
    # s2i-java-container: save-artifacts runs `cd -` after its tar.
    ("S2I017", "save-artifacts", "#!/bin/sh -e\ncd /tmp/artifacts\ntar cf - .m2\ncd -\n", 4),
    ("S2I018", "save-artifacts", "#!/bin/sh -e\necho saving\ntar cf - .m2\n", 2),
    ("S2I018", "save-artifacts", "#!/bin/bash -e\npushd /go\ntar cf - pkg\n", 2),
    # learning-s2i: two tars if both directories exist.
    ("S2I019", "save-artifacts", "#!/bin/sh -e\ntar cf - src\ntar cf - pkg\n", 3),
    ("S2I019", "save-artifacts", "#!/bin/sh -e\nif A; then tar c; fi\nif B; then tar c; fi\n", 3),
    ("S2I019", "save-artifacts", "#!/bin/sh -e\nfor d in src pkg; do tar cf - $d; done\n", 2),
    ("S2I020", "assemble", "#!/bin/sh\nset -ex\nmake\n", 2),
    ("S2I020", "assemble", "#!/bin/bash -ex\nmake\n", 1),
    ("S2I020", "assemble", "#!/bin/sh -e\nmake && make install\nset -x\nmake\n", 3),
    ("S2I022", "assemble", "#!/bin/sh -e\necho x >/etc/motd\n", 2),
    ("S2I022", "assemble", "#!/bin/sh -e\ncp app /usr/local/bin/app\n", 2),
    ("S2I022", "assemble", "#!/bin/sh -e\napt-get update\napt-get install -y gcc\n", 3),
    ("S2I023", "assemble", "#!/bin/sh -e\nsudo make install\n", 2),
    # learning-s2i: with -h assemble execs a usage that is in another directory.
    ("S2I024", "assemble", "#!/bin/sh -e\n[ $# = 0 ] || exec /usr/libexec/s2i/bin/usage\n", 2),
]  # fmt: skip

GOOD = [
    ("assemble", ASSEMBLE),
    ("assemble", "#!/usr/bin/env bash\nset -euo pipefail\nshopt -s dotglob\nmv /tmp/src/* .\n"),
    ("assemble", "#!/bin/sh\nset -o errexit\nmake\nmake install\n"),
    ("assemble", '#!/bin/sh -e\nfor file in /tmp/src/*; do\n  make "$file"\ndone\n'),
    ("assemble", '#!/bin/sh -e\nfound="$(ls /tmp/src)"\n[ -n "$found" ] || exit 1\n'),
    ("assemble", "#!/bin/sh -e\n# sudo mv $(ls) /etc/x\necho 'exec $@; sudo ls' \"set -x\"\n"),
    ("assemble", f'#!/bin/sh -e\nif [ "$1" = -h ]; then exec {SCRIPTS}/usage; fi\n'),
    ("assemble", '#!/bin/sh -e\nif [ -n "$DEBUG" ]; then set -x; fi\nmake\n'),
    ("assemble", "#!/bin/sh -e\ncat <<'E' >run.sh\nsudo ls $@\npushd /\nE\ncp /etc/motd .\n"),
    ("assemble", '#!/bin/sh -e\n[ -z "$DEBUG" ] || set -x\nmake\n'),
    ("assemble", '#!/bin/bash -e\n[[ $BUILD_LOGLEVEL -gt 4 ]] && set -x\nmake\n'),
    ("assemble", '#!/bin/sh -e\ncase $DEBUG in 1) set -x ;; esac\nmake\n'),
    # s2i-java-container: what is counted is a number.
    ("assemble", "#!/bin/sh -e\nn=`ls *.jar | grep -v x | wc -l`\n[ $n = 1 ] || exit 1\n"),
    ("assemble", "#!/bin/sh -e\n[ $(find . -name '*.jar' | wc -l) = 1 ] || exit 1\n"),
    ("assemble", "#!/bin/sh -e\necho $(ls)\nmake\n"),
    ("assemble", '#!/bin/sh -e\nx=${A:-b} y=${A%/} z=${#A} w=${A##*/} v="${A:?no A}"\nmake\n'),
    ("assemble", "#!/bin/sh -e\nx=$((1 + 2))\n[ a = b ] || echo '[[ &> <<< ' >&2\nmake\n"),
    # What the builders' guide of source-to-image writes.
    ("save-artifacts", '#!/bin/bash -e\npushd "$HOME" >/dev/null\nif [ -d deps ]; then\n'
                       "  tar cf - deps\nfi\npopd >/dev/null\n"),
    ("run", RUN),
    ("run", '#!/bin/bash -e\nargs=("$@" --port 80)\nexec ./app "${args[@]}"\n'),
    ("run", '#!/bin/sh -e\nset -- ./app --port 80 "$@"\nexec "$@"\n'),
    ("run", '#!/bin/sh -e\ntrap \'kill "$!"\' TERM\n./app "$@" &\nwait "$!"\n'),
    ("run", '#!/bin/sh -e\nchmod 0644 c\nif [ -x a ]; then exec ./a "$@"; fi\nexec ./b "$@"\n'),
    ("run", '#!/usr/bin/python3\nprint("no shell: $(ls")\n'),
    ("save-artifacts", SAVE),
    ("save-artifacts", "#!/bin/sh -e\necho saving >&2\ntar cf - .m2\ncd - >/dev/null\n"),
    ("save-artifacts", "#!/bin/bash -e\nexec 3>&1 >&2\necho saving\ntar cf - pkg >&3\n"),
    ("save-artifacts", "#!/bin/sh -e\n{ echo saving; ls; } >&2\nfound=$(ls)\ntar cf - a\n"),
    ("save-artifacts", "#!/bin/sh -e\nif [ -d a ]; then\n  tar cf - a\nelse\n  tar cf - b\nfi\n"),
    ("save-artifacts", "#!/bin/sh -e\ncase $1 in\na) tar cf - a ;;\n*) tar cf - b ;;\nesac\n"),
    ("usage", USAGE),
]  # fmt: skip


@pytest.mark.parametrize(("code", "name", "text", "line"), BAD)
def test_a_fault_of_a_script_is_found_where_it_is(
    code: str, name: str, text: str, line: int
) -> None:
    found = [one for one in of_script(text, name) if one.rule.code == code]
    assert [one.line for one in found][:1] == [line]


@pytest.mark.parametrize(("name", "text"), GOOD)
def test_a_good_script_has_none(name: str, text: str) -> None:
    assert [one.text() for one in of_script(text, name)] == []


def test_some_faults_depend_on_the_image() -> None:
    fixed = "#!/bin/sh -e\nmv /tmp/src/app .\n"
    assert codes(of_script(fixed, "assemble", destination="/opt/s2i")) == {"S2I021"}
    assert codes(of_script(fixed, "assemble")) == set()
    system = "#!/bin/sh -e\ncp app /usr/bin/app\n"
    assert codes(of_script(system, "assemble", is_root=True)) == set()
    words = "#!/bin/sh -e\npushd x >/dev/null\n"
    assert codes(of_script(words, "assemble", sh_is_bash=True)) == set()
    # Alpine's /bin/sh knows much of bash, and not all.
    known = '#!/bin/sh -e\nset -o pipefail\n[[ "${A:0:1}" == a ]] && ls &>/dev/null\nsource ./x\n'
    assert codes(of_script(known, "assemble", sh_is_busybox=True)) == set()
    assert codes(of_script(words, "assemble", sh_is_busybox=True)) == {"S2I011"}
    array = "#!/bin/sh -e\nx=(a b)\nmake\n"
    assert codes(of_script(array, "assemble", sh_is_busybox=True)) == {"S2I011"}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("#!/bin/sh -e\nexec ./app # ocis2i-lint: disable=S2I013\n", set()),
        ("#!/bin/sh -e\n# ocis2i-lint: disable=S2I013,S2I014 none\nexec ./app\n", set()),
        ("#!/bin/sh\n# ocis2i-lint: disable=S2I010, S2I012\n\nmake\n./app \"$@\"\n", set()),
        ("#!/bin/sh -e\nmake\n# ocis2i-lint: disable=S2I013\nmake\nexec ./app\n", {"S2I013"}),
        ("#!/bin/sh -e\n# ocis2i-lint: disable=S2I012\nexec ./app\n", {"S2I013"}),
        ("#!/bin/sh -e\necho '# ocis2i-lint: disable=S2I013'\nexec ./app\n", {"S2I013"}),
    ],
)  # fmt: skip
def test_a_comment_switches_rules_off(text: str, found: set[str]) -> None:
    assert codes(of_script(text, "run")) == found


@pytest.mark.parametrize("more", [b"(" * 9999, b"$((" * 20000, b"`" * 999, b"a;" * 99999, b"\0"])
def test_no_script_breaks_the_checks(more: bytes) -> None:
    for data in (more, b"", b"#!", b"\xff" * 99, b"#!/bin/sh\n" + more):
        of_script(data, "run")


# --- images -----------------------------------------------------------------------------------


def file(text: str = "", mode: int = 0o755, uid: int = 0, gid: int = 0) -> Entry:
    return Entry("file", mode, uid, gid, len(text), "", text.encode())


def directory(mode: int = 0o755, uid: int = 0, gid: int = 0) -> Entry:
    return Entry("directory", mode, uid, gid)


FILES = {
    "bin": directory(),
    "bin/sh": file(),
    "usr": directory(),
    "usr/libexec": directory(),
    "usr/libexec/s2i": directory(),
    "usr/libexec/s2i/assemble": file(ASSEMBLE),
    "usr/libexec/s2i/run": file(RUN),
    "usr/libexec/s2i/save-artifacts": file(SAVE),
    "usr/libexec/s2i/usage": file(USAGE),
    "opt": directory(),
    "opt/app": directory(0o775, 1001, 0),
}
LABELS = {"io.openshift.s2i.scripts-url": f"image://{SCRIPTS}"}
RUNTIME = RuntimeConfig("1001", cmd=(f"{SCRIPTS}/usage",), working_dir="/opt/app", labels=LABELS)
PARAMETERS = json.dumps({"version": 1, "parameters": [{"name": "GOALS"}]})


def image(runtime: RuntimeConfig = RUNTIME, **files: Entry | None) -> set[str]:
    config = ImageConfig(platform=Platform("linux", "amd64"), runtime=runtime)
    changed = {name.replace("__", "/").replace("_", "-"): one for name, one in files.items()}
    known = {
        f"usr/libexec/s2i/{name}" if "/" not in name else name: one for name, one in changed.items()
    }
    entries = {name: one for name, one in {**FILES, **known}.items() if one is not None}
    return codes(check_image(runtime, read_contract(config), Tree(entries)))


def test_a_good_image_has_no_faults() -> None:
    assert image() == set()


def with_labels(**labels: str) -> RuntimeConfig:
    return replace(RUNTIME, labels={**LABELS, **{f"io.{k}": v for k, v in labels.items()}})


def test_faults_of_scripts_in_an_image_are_found() -> None:
    assert image(run=None) == {"S2I001"}
    assert image(usage=None) == {"S2I008", "S2I033"}
    assert image(run=file(RUN, mode=0o644)) == {"S2I002"}
    assert image(run=file(RUN.replace("/bin/sh", "/bin/bash"))) == {"S2I006"}
    assert image(run=file(RUN.replace("\n", "\r\n"))) == {"S2I003"}
    assert image(assemble=file(ASSEMBLE, 0o700, 1001, 1001)) == {"S2I025"}
    assert image(opt__app__key=file("k", 0o600, 1001, 0)) == {"S2I025"}
    assert image(opt__app__key=file("k", 0o640, 1001, 0)) == set()


def test_faults_of_a_config_are_found() -> None:
    assert image(replace(RUNTIME, labels={})) == {"S2I030"}
    nowhere = {"io.openshift.s2i.scripts-url": "image:///usr/local/s2i"}
    assert image(replace(RUNTIME, labels=nowhere)) == {"S2I031"}
    old = {"io.s2i.scripts-url": f"image://{SCRIPTS}"}
    assert image(replace(RUNTIME, labels=old)) == {"S2I032"}
    # learning-s2i: CMD is /usr/libexec/s2i/usage, and the scripts are in bin/ below it.
    assert image(replace(RUNTIME, cmd=(f"{SCRIPTS}/bin/usage",))) == {"S2I033"}
    assert image(replace(RUNTIME, cmd=("/bin/sh", "-c", "/nowhere/usage"))) == {"S2I033"}
    assert image(replace(RUNTIME, user="default", working_dir="/opt/app")) == {"S2I034"}
    assert image(replace(RUNTIME, user="")) == {"S2I035"}
    assert image(replace(RUNTIME, user="0:0")) == {"S2I035"}
    assert image(replace(RUNTIME, working_dir="")) == {"S2I036"}
    assert image(replace(RUNTIME, working_dir="/usr")) == {"S2I037"}
    assert image(replace(RUNTIME, on_build=("RUN make",))) == {"S2I038"}


def test_faults_of_declared_parameters_are_found() -> None:
    label = with_labels(**{"ocis2i.parameters": PARAMETERS})
    assert image(label) == {"S2I041"}
    reads = file(ASSEMBLE + 'make "$GOALS"\n')
    assert image(label, assemble=reads) == set()
    assert image(with_labels(**{"ocis2i.parameters": "{"})) == {"S2I040"}
    beside = {"usr__libexec__s2i__parameters.json": file(PARAMETERS)}
    assert image(RUNTIME, assemble=reads, **beside) == set()
    assert image(RUNTIME, **beside) == {"S2I041"}
    assert image(label, assemble=reads, **beside) == {"S2I042"}


# --- directories ------------------------------------------------------------------------------

DOCKERFILE = """\
ARG BASE=docker.io/library/busybox
FROM ${BASE}
LABEL io.k8s.display-name="x" \\
      io.openshift.s2i.scripts-url="image:///usr/libexec/s2i"
COPY --chmod=0755 s2i/bin/ /usr/libexec/s2i/
WORKDIR /opt/app
RUN chown 1001:0 . && chmod 0775 .
USER 1001
CMD ["/usr/libexec/s2i/usage"]
"""


def repository(dockerfile: str = DOCKERFILE, **scripts: str | None) -> set[str]:
    texts = {"assemble": ASSEMBLE, "run": RUN, "usage": USAGE} | scripts
    files = {
        name: ScriptFile(f"s2i/bin/{name}", text.encode())
        for name, text in texts.items()
        if text is not None
    }
    return codes(check_context(Context("s2i/bin", files, dockerfile, "Dockerfile", "s2i/bin")))


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        ("", "", set()),
        ('"image:///usr/libexec/s2i"', '"image:///usr/local/s2i"', {"S2I031"}),
        # learning-s2i: the whole tree is copied, and CMD forgets bin/.
        ("COPY --chmod=0755 s2i/bin/ ", "COPY --chmod=0755 ./s2i/ ", {"S2I031", "S2I033"}),
        ("io.openshift.s2i.scripts-url", "io.s2i.scripts-url", {"S2I032"}),
        ("io.openshift.s2i.scripts-url", "io.example", {"S2I030"}),
        ("USER 1001", "USER default", {"S2I034"}),
        ("USER 1001", "USER root", {"S2I035"}),
        ("WORKDIR /opt/app\n", "", {"S2I036"}),
        ("USER 1001", "ONBUILD RUN make\nUSER 1001", {"S2I038"}),
        ("chown 1001:0 .", "chown -R 1001:1001 /opt", {"S2I025"}),
        ("chown 1001:0 .", "chown -R 1001:1001 /opt && chmod -R g=u /opt", set()),
        ("# ", "# ", set()),
    ],
)  # fmt: skip
def test_faults_of_a_dockerfile_are_found(before: str, after: str, found: set[str]) -> None:
    assert repository(DOCKERFILE.replace(before, after)) == found


def test_faults_of_scripts_in_a_directory_are_found() -> None:
    assert repository(run=None) == {"S2I001"}
    assert repository(usage=None) == {"S2I008", "S2I033"}
    plain = ScriptFile("run", RUN.encode(), executable=False)
    files = {"assemble": ScriptFile("assemble", ASSEMBLE.encode()), "run": plain}
    assert codes(check_context(Context(".", files))) == {"S2I002", "S2I008"}
    assert codes(check_context(Context(".s2i/bin", {"run": plain}, of_source=True))) == set()


# --- the rules --------------------------------------------------------------------------------


def test_every_rule_is_tried_here() -> None:
    tried = Path(__file__).read_text()
    assert [code for code in RULES if f'"{code}"' not in tried] == []


def test_the_page_lists_the_rules_as_they_are_declared() -> None:
    page = (PROJECT / "docs/lint.md").read_text()
    _, _, rest = page.partition("<!-- rules -->\n")
    listed, end, _ = rest.partition("<!-- end of rules -->")
    assert end
    assert listed == table()


def test_a_rule_is_said_in_sentences() -> None:
    for rule in RULES.values():
        assert rule.why.endswith(".") and rule.mend.endswith((".", '"image:///usr/libexec/s2i".'))
        assert rule.title[0].islower() or rule.title[0] == "`" or rule.title.startswith("ONBUILD")


def test_only_known_codes_are_ignored() -> None:
    assert parse_codes(["s2i012,S2I013", "S2I001"]) == {"S2I001", "S2I012", "S2I013"}
    with pytest.raises(UsageError, match="no rule `S2I999`"):
        parse_codes(["S2I999"])
