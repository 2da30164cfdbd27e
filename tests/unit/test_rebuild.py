"""What the labels of an image say about its build."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocis2i.errors import ImageError, PolicyError, exit_code_of
from ocis2i.manifest import RuntimeConfig
from ocis2i.rebuild import (
    Rebuild,
    is_remote,
    lost_secret,
    plan_rebuild,
    refuse_local_places,
)
from ocis2i.s2i import SourceInfo, generated_labels, redact_url

COMMIT = "0123456789abcdef0123456789abcdef01234567"
URL = "https://git.example/project.git"
BUILDER = "quay.io/some/builder:1"


def planned(**labels: str | None) -> Rebuild:
    """From the labels of a clone; keyword `commit_id` is `io.openshift.s2i.build.commit.id`."""
    values = {"image": BUILDER, "source_location": URL, "commit_id": COMMIT, "commit_ref": "main"}
    build = {
        "io.openshift.s2i.build."
        + key.replace("commit_", "commit.").replace("source_", "source-").replace("_", "-"): value
        for key, value in (values | labels).items()
        if value is not None
    }
    return plan_rebuild("app:1", RuntimeConfig(labels=build))


def refused(**labels: str | None) -> ImageError:
    with pytest.raises(ImageError) as caught:
        planned(**labels)
    assert exit_code_of(caught.value) == 4
    assert "app:1" in caught.value.message
    assert "ocis2i build" in str(caught.value.hint)
    return caught.value


def copied(location: str, **labels: str | None) -> Rebuild:
    return planned(source_location=location, commit_id=None, commit_ref=None, **labels)


def test_the_labels_of_a_build_give_that_build_again() -> None:
    info = SourceInfo(location=URL, ref="main", commit_id=COMMIT, context_dir="web")
    labels = generated_labels(
        info, builder=BUILDER, tag="app:1", description="words", application_name="App"
    )
    assert plan_rebuild("app:1", RuntimeConfig(labels=labels)) == Rebuild(
        builder=BUILDER,
        source=URL,
        ref=COMMIT,
        context_dir="web",
        description="words",
        application_name="App",
    )


def test_the_recorded_commit_counts_and_not_the_branch() -> None:
    assert planned(commit_ref="main").ref == COMMIT
    assert planned(commit_ref="HEAD").ref == COMMIT
    assert planned(commit_id="a" * 64).ref == "a" * 64
    assert planned().warnings == ()


def test_a_branch_without_a_commit_is_built_as_it_is_now() -> None:
    plan = planned(commit_id=None)
    assert plan.ref == "main"
    assert plan.warnings == ("the image does not say which commit: `main` is built as it is now",)


@pytest.mark.parametrize("ref", ["HEAD", None])
def test_without_commit_and_branch_it_is_the_default_branch(ref: str | None) -> None:
    plan = planned(commit_id=None, commit_ref=ref)
    assert plan.ref is None
    assert plan.warnings == (
        f"the image does not say which commit: the default branch of `{URL}` is built",
    )


@pytest.mark.parametrize(
    "commit", ["main", "--upload-pack=x", "0123abc", COMMIT.upper(), "\x1b[2J"]
)
def test_what_is_no_commit_id_is_refused(commit: str) -> None:
    error = refused(commit_id=commit)
    assert "is no commit id" in error.message
    assert "\x1b" not in error.message


@pytest.mark.parametrize("label", ["image", "source_location"])
@pytest.mark.parametrize("value", [None, ""])
def test_missing_labels_are_named_in_the_words_of_s2i(label: str, value: str | None) -> None:
    name = f"io.openshift.s2i.build.{label.replace('_', '-')}"
    error = refused(**{label: value})
    assert error.message == f"required label `{name}` not found in image `app:1`"


def test_scripts_url_of_the_image_is_not_taken_for_the_flag() -> None:
    labels = generated_labels(SourceInfo(location=URL, commit_id=COMMIT), builder=BUILDER)
    with_url = labels | {"io.openshift.s2i.scripts-url": "image:///usr/libexec/s2i"}
    plans = [plan_rebuild("app:1", RuntimeConfig(labels=one)) for one in (labels, with_url)]
    assert plans[0] == plans[1]


def test_a_builder_may_be_a_path_of_the_first_build() -> None:
    plan = planned(image="oci:/images/builder:latest")
    assert plan.builder == "oci:/images/builder:latest"
    assert plan.warnings == ()
    assert "relative path" in planned(image="oci:builder:latest").warnings[0]


@pytest.mark.parametrize("builder", ["Not A Name", "docker-daemon:x", "a@b", "oci:"])
def test_a_builder_that_is_no_image_name_is_refused(builder: str) -> None:
    with pytest.raises(ImageError, match=r"io\.openshift\.s2i\.build\.image. of image .app:1."):
        planned(image=builder)


def test_the_deleted_builder_of_a_layered_build_is_explained() -> None:
    error = refused(image="docker.io/library/s2i-layered-temp-image-1700000000:latest")
    assert "makes for one build and deletes" in error.message


def test_standard_input_cannot_be_read_again() -> None:
    assert "standard input, which is not kept" in refused(source_location="-").message


def test_a_url_that_lost_its_token_is_no_source() -> None:
    url = redact_url(f"{URL}?private_token=s3cret&x=1")
    error = refused(source_location=url)
    assert "had a secret in its URL" in error.message


def test_a_url_that_lost_only_its_password_may_work_with_a_helper() -> None:
    url = redact_url("https://user:s3cret@git.example/project.git")
    assert planned(source_location=url).source == URL


def test_no_password_of_another_tools_label_is_shown() -> None:
    location = "https://user:s3cret@git.example/project.git"
    plan = planned(source_location=location, commit_id=None, commit_ref=None)
    assert "s3cret" not in "".join(plan.warnings)
    error = refused(source_location=f"{location}?token=redacted")
    assert "s3cret" not in error.message


def test_a_directory_that_was_copied_is_copied_again() -> None:
    plan = copied("/home/me/app")
    assert (plan.source, plan.copy, plan.ref) == ("/home/me/app", True, None)
    assert plan.warnings == (
        "`/home/me/app` is built as it is now: the image does not say what was in it",
    )


@pytest.mark.parametrize("location", ["/home/me/app", "file:///home/me/app"])
def test_a_local_repository_is_cloned_again(location: str) -> None:
    plan = planned(source_location=location)
    assert (plan.copy, plan.ref, plan.warnings) == (False, COMMIT, ())


@pytest.mark.parametrize("location", ["app", ".", "../app", "./app.tar", "file:app", "~/app"])
def test_a_relative_path_is_warned_about(location: str) -> None:
    relative = [one for one in copied(location).warnings if "relative path" in one]
    assert len(relative) == 1
    assert f"`{location}`" in relative[0]


@pytest.mark.parametrize(
    "location", ["/app.tar", "/a/app.tar.gz", "/app.TGZ", "/app.zip", "/app.jar"]
)
def test_an_archive_is_read_again(location: str) -> None:
    plan = copied(location)
    assert not plan.copy
    assert plan.warnings == (
        f"`{location}` is built as it is now: the image does not say what was in it",
    )


@pytest.mark.parametrize(
    ("location", "remote"),
    [
        (URL, True),
        ("ssh://git@git.example/project", True),
        ("git@git.example:project.git", True),
        ("git.example:project.git", True),
        ("/home/me/a:b", False),
        ("./a:b", False),
        ("app", False),
        ("file:///app", False),
        ("FILE:/app", False),
    ],
)
def test_a_hostile_image_can_be_told_by_its_local_source(location: str, remote: bool) -> None:
    assert is_remote(location) == remote
    assert planned(source_location=location).is_local != remote


def test_control_characters_of_labels_do_not_reach_the_terminal() -> None:
    plan = copied("/app\x1b]0;owned\x07", image="oci:b")
    assert not any("\x1b" in one or "\x07" in one for one in plan.warnings)


@given(st.sampled_from(["token", "access_token", "password", "api-key"]), st.text(max_size=9))
def test_every_secret_that_is_redacted_is_known_to_be_lost(name: str, secret: str) -> None:
    url = f"{URL}?{name}={secret}"
    assert lost_secret(redact_url(url)) == (redact_url(url) != url or secret == "redacted")


@given(
    st.dictionaries(
        st.sampled_from(["image", "source_location", "commit_id", "commit_ref"]), st.text()
    )
)
def test_any_labels_are_a_rebuild_or_an_image_error(labels: dict[str, str]) -> None:
    try:
        plan = planned(**labels)
    except ImageError as error:
        assert error.hint
    else:
        assert plan.builder and plan.source


# --- images that somebody else made ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("plan", "place"),
    [
        (Rebuild(BUILDER, "/home/jane", is_local=True), "source `/home/jane`"),
        (Rebuild("oci:/home/jane/images:b", URL), "builder `oci:/home/jane/images:b`"),
        (Rebuild("docker-archive:b.tar", URL), "builder `docker-archive:b.tar`"),
        (
            Rebuild(f"sha256:{'a' * 64}", URL),
            f"builder `sha256:{'a' * 64}`, an image of this store",
        ),
    ],
)
def test_places_of_this_host_are_refused(plan: Rebuild, place: str) -> None:
    with pytest.raises(PolicyError) as caught:
        refuse_local_places("app:1", plan, built_from=None, built_with=None)
    assert "`app:1`" in caught.value.message
    assert place in caught.value.message
    assert "ocis2i build" in str(caught.value.hint)


HERE = Rebuild("oci:/images:b", "/home/me/app", is_local=True)


def test_places_of_this_host_are_those_of_our_own_build() -> None:
    refuse_local_places("app:1", HERE, built_from=HERE.source, built_with=HERE.builder)


@pytest.mark.parametrize(
    ("built_from", "built_with", "named"),
    [
        ("/home/me/app", BUILDER, "builder `oci:/images:b`"),
        ("/home/me/app", None, "builder `oci:/images:b`"),
        (URL, "oci:/images:b", "source `/home/me/app`"),
    ],
)
def test_what_assemble_wrote_over_the_labels_is_what_is_named(
    built_from: str, built_with: str | None, named: str
) -> None:
    with pytest.raises(PolicyError, match=f"names the {named}"):
        refuse_local_places("app:1", HERE, built_from=built_from, built_with=built_with)


def test_a_directory_that_was_built_here_meets_no_other_builder() -> None:
    plan = Rebuild("quay.io/another/builder:1", "/home/me/app", is_local=True)
    with pytest.raises(PolicyError, match="source `/home/me/app`"):
        refuse_local_places("app:1", plan, built_from=plan.source, built_with=BUILDER)


def test_places_far_away_are_not_refused() -> None:
    plan = planned()
    assert not plan.is_local
    refuse_local_places("app:1", plan, built_from=None, built_with=None)


ARTIFACT = f"oci-artifact://registry.example/sources/app@sha256:{'ab' * 32}"


def test_artifact_is_the_source_again_whatever_commit_it_was_made_of() -> None:
    plan = planned(source_location=ARTIFACT, commit_ref=None)
    assert (plan.source, plan.ref) == (ARTIFACT, None)
    assert not plan.is_local
    assert not plan.copy
    assert plan.warnings == ()


def test_artifact_without_a_commit_needs_no_warning() -> None:
    assert copied(ARTIFACT).warnings == ()
