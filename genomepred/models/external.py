"""Models that come with their own code: a user's ``torch.nn.Module`` between codes and tracks.

Code outside the package runs only where the user names it (``--trust-code``), never because a
card does.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from genomepred.errors import ModelError
from genomepred.models.card import Card
from genomepred.models.layers import SequenceModel


@dataclass(frozen=True)
class TrustedCode:
    """A class (or function) that makes a module, loaded from code that the user trusts.

    Parameters
    ----------
    asked : str
        What the user wrote: ``PATH[:CLASS]`` or ``MODULE:CLASS``.
    make : callable
        Called with a card's ``config``.
    file : Path
        File that defines it.
    sha256 : str
        Of that file, as it was executed; of a module in memory, see :func:`code_of`.
    """

    asked: str
    make: Callable[..., Any]
    file: Path
    sha256: str


class External(SequenceModel):
    """A user's own module, called with what its card says and checked in what it returns.

    The state dict is the module's own, so that its keys are those of the user's weights.

    Parameters
    ----------
    module : nn.Module
        Called with int64 codes ``[batch, window]`` or a float one-hot, ``[batch, 4, window]``
        (channels first) or ``[batch, window, 4]`` (channels last), contiguous. Returns raw
        values ``[batch]``, ``[batch, tracks]`` or ``[batch, bins, tracks]``, or
        ``[batch, tracks, bins]`` where the card says so.
    card : Card
        Sizes, input, base order and N policy. With codes for input, code k is the k-th base of
        the base order, and 4 an unknown one.
    code : TrustedCode
        Where the module comes from.
    """

    ranks: Tensor
    code: TrustedCode

    def __init__(self, module: nn.Module, card: Card, code: TrustedCode) -> None:
        super().__init__(
            card.window,
            len(card.tracks),
            crop=card.crop,
            bins=card.bins,
            base_order=card.base_order,
            n_policy=card.n_policy,
        )
        self.input, self.output, self.code, self.module = card.input, card.output, code, module
        ranks = [card.base_order.index(base) for base in "ACGT"]
        self.register_buffer("ranks", torch.tensor([*ranks, 4]), persistent=False)

    def encode(self, codes: Tensor) -> Tensor:
        """Codes ``uint8 [batch, window]`` -> ``float [batch, 4, window]``, or codes as int64."""
        if self.input == "codes":
            return self.ranks[codes.clamp(max=4).long()]
        return super().encode(codes)

    def body(self, x: Tensor) -> Tensor:
        """Output of :meth:`encode` -> raw values ``[batch, bins, tracks]``.

        Raises
        ------
        ModelError
            If the user's code fails, or returns another shape.
        """
        if self.input == "onehot_channels_last":
            x = x.transpose(1, 2)
        try:
            values = self.module(x.contiguous())
        except (ModelError, torch.cuda.OutOfMemoryError):
            raise
        except Exception as error:
            raise _failed(self.code.file, "called with " + _shape(x), error) from error
        return self._arranged(values, len(x))

    def _arranged(self, values: Any, batch: int) -> Tensor:
        if isinstance(values, Tensor):
            shape = tuple(values.shape)
            if shape == self._returned(batch):
                return values.transpose(1, 2) if self.output == "tracks_bins" else values
            scalar = self.bins == 1 and (
                shape == (batch, self.tracks) or (shape == (batch,) and self.tracks == 1)
            )
            if scalar:
                return values.reshape(batch, 1, self.tracks)
        raise ModelError(
            f"{self.code.file}: the model returns {_shape(values)} for {batch} windows; the card "
            f"says {self.bins} bins and {self.tracks} tracks, so return "
            f"{self._allowed(batch)}"
        )

    def _returned(self, batch: int) -> tuple[int, int, int]:
        if self.output == "tracks_bins":
            return batch, self.tracks, self.bins
        return batch, self.bins, self.tracks

    def _allowed(self, batch: int) -> str:
        shapes = [list(self._returned(batch))]
        if self.bins == 1:
            shapes += [[batch, self.tracks], *([[batch]] if self.tracks == 1 else [])]
        return " or ".join(map(str, shapes))

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """State of the user's module, under its own names."""
        return self.module.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load what :meth:`state_dict` gives."""
        return self.module.load_state_dict(state_dict, *args, **kwargs)


def told_of_code(model: SequenceModel) -> str:
    """A line on trusted code that is not the file of which the card tells; else nothing."""
    imported = model.card.training.get("imported")
    then = imported.get("code_sha256") if isinstance(imported, dict) else None
    if not isinstance(model, External) or then in (None, model.code.sha256):
        return ""
    return (
        f"{model.code.file}: sha256 is {model.code.sha256[:12]}..., but model {model.card.name!r} "
        f"was imported with code of sha256 {str(then)[:12]}...; golden outputs tell whether it "
        "computes the same"
    )


def _shape(values: Any) -> str:
    if isinstance(values, Tensor):
        return str(list(values.shape))
    return f"a {type(values).__name__}"


def _failed(file: Path, when: str, error: BaseException) -> ModelError:
    said = " ".join(str(error).split())
    return ModelError(f"{file}: {when}: {type(error).__name__}: {said[:500]}")


def make_external(card: Card, trust_code: str | None) -> External:
    """Model of a card whose architecture is the user's, freshly initialized.

    Parameters
    ----------
    card : Card
        Its ``config`` holds the arguments of the user's class.
    trust_code : str or None
        ``PATH[:CLASS]`` of a Python file, ``MODULE:CLASS`` of an installed module, or
        ``FOLDER:MODULE:CLASS`` of a module that imports others of its folder. It is executed.

    Raises
    ------
    ModelError
        If no code is trusted, or the code does not make such a model.
    """
    if trust_code is None:
        raise ModelError(
            f"model {card.name!r} comes with its own code, which a card never causes to run; read "
            "the code, then name it with --trust-code PATH[:CLASS]"
        )
    code = load_code(trust_code)
    try:
        inspect.signature(code.make).bind(**card.config)
    except TypeError as error:
        allowed = ", ".join(inspect.signature(code.make).parameters)
        raise ModelError(
            f"{code.file}: does not accept the card's config: {error}; its arguments are {allowed}"
        ) from error
    try:
        module = code.make(**card.config)
    except Exception as error:
        raise _failed(code.file, f"called with {card.config}", error) from error
    if not isinstance(module, nn.Module):
        raise ModelError(f"--trust-code {trust_code}: makes {_shape(module)}, not a nn.Module")
    return External(module, card, code)


def as_model(module: nn.Module, card: Card) -> SequenceModel:
    """A module in memory between codes and tracks, as its card says; a model as it is."""
    if isinstance(module, SequenceModel):
        return module
    return External(module, card, code_of(module))


def code_of(module: nn.Module) -> TrustedCode:
    """The code of a module in memory: its structure as torch prints it, and its classes' sources.

    A class whose source cannot be read, as one that was typed into an interpreter, counts by its
    name alone. Classes of torch are what the version of torch says.
    """
    kinds = {type(part) for part in module.modules()}
    sources = sorted(_source(kind) for kind in kinds if kind.__module__.split(".")[0] != "torch")
    structure = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(module))
    kind = type(module)
    try:
        file = Path(inspect.getfile(kind))
    except (OSError, TypeError):
        file = Path(kind.__qualname__)
    return TrustedCode(
        kind.__qualname__, kind, file, _sha256("\0".join([structure, *sources]).encode())
    )


def _source(kind: type) -> str:
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):
        return kind.__qualname__


def load_code(trust_code: str) -> TrustedCode:
    """Execute the code that the user trusts, and find the class in it.

    Raises
    ------
    ModelError
        If there is no such file, module or class, or executing it fails.
    """
    if (inside := _in_folder(trust_code)) is not None:
        return inside
    path, name = Path(trust_code), ""
    if not path.is_file():
        before, _, name = trust_code.rpartition(":")
        path = Path(before)
    if path.is_file():
        source = _read(path)
        module = _execute(path, source)
        make = _find(module, name, trust_code)
        return TrustedCode(trust_code, make, path, _sha256(source))
    words = [name, *str(path).split(".")]
    if path.suffix == ".py" or not all(map(str.isidentifier, words)):
        raise ModelError(
            f"--trust-code {trust_code}: no such file; write PATH, PATH:CLASS or MODULE:CLASS"
        )
    try:
        module = importlib.import_module(str(path))
    except (Exception, SystemExit) as error:
        raise _failed(Path(str(path)), "importing it", error) from error
    make = _find(module, name, trust_code)
    try:
        file = Path(inspect.getfile(make))
    except TypeError as error:
        raise ModelError(f"--trust-code {trust_code}: has no file of its own: {error}") from error
    return TrustedCode(trust_code, make, file, _sha256(_read(file)))


def _in_folder(trust_code: str) -> TrustedCode | None:
    """Code of ``FOLDER:MODULE:CLASS``, whose module may import its neighbors; None if no folder.

    The folder becomes the first place that this process imports from.
    """
    folder, _, rest = trust_code.partition(":")
    if not (Path(folder).is_dir() and rest):
        return None
    words = rest.replace(":", ".").split(".")
    if rest.count(":") != 1 or not all(map(str.isidentifier, words)):
        raise ModelError(
            f"--trust-code {trust_code}: write FOLDER:MODULE:CLASS, as src:net.model:Net"
        )
    name, _, wanted = rest.partition(":")
    home = Path(folder).resolve()
    digest = _sources_sha256(home)
    if str(home) not in sys.path:
        sys.path.insert(0, str(home))
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise _failed(home / name, "importing it", error) from error
    file = Path(module.__file__ or "")
    if home not in file.resolve().parents:
        raise ModelError(
            f"--trust-code {trust_code}: {name} is {file}, not a module of that folder; name "
            "another folder or module"
        )
    return TrustedCode(trust_code, _find(module, wanted, trust_code), file, digest)


def _sources_sha256(folder: Path) -> str:
    """sha256 over names and contents of all Python files of a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder)}\0{_sha256(_read(path))}\0".encode())
    return digest.hexdigest()


def _sha256(source: bytes) -> str:
    return hashlib.sha256(source).hexdigest()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"--trust-code {path}: cannot be read: {error.strerror}") from error


def _execute(path: Path, source: bytes) -> ModuleType:
    """Module of a file's source; what is executed is exactly what is hashed."""
    digest = hashlib.sha256(str(path.resolve()).encode() + b"\0" + source).hexdigest()
    name = f"trusted_code_{digest[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses and pickle look their classes up there
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise _failed(path, "executing it", error) from error
    return module


def _find(module: ModuleType, name: str, trust_code: str) -> Callable[..., Any]:
    own = [
        key
        for key, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, nn.Module)
        and value.__module__ == module.__name__
    ]
    if not name and len(own) == 1:
        name = own[0]
    found: Callable[..., Any] | None = getattr(module, name, None) if name else None
    if not callable(found):
        what = f"has no class {name!r}" if name else "does not say which class it is"
        raise ModelError(
            f"--trust-code {trust_code}: {what}; the modules defined there are "
            f"{', '.join(own) or 'none'}: write {trust_code.removesuffix(':' + name)}:CLASS"
        )
    return found
