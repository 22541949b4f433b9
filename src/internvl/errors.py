"""Every error a user can meet, and nothing else.

    InternVLError
    ├── InputError (ValueError)        what was handed over cannot be used
    │   ├── ImageError                 a picture: missing, corrupt, too large
    │   ├── VideoError                 a video or frame folder
    │   ├── DocumentError              a PDF
    │   ├── PromptError                messages, roles, `<image>` marks, templates
    │   ├── ContextOverflowError       prompt plus answer do not fit the context
    │   ├── CapacityError              a request that an engine of this size can never hold
    │   └── RequestError               a request to the server, which says with what status it is refused
    ├── CheckpointError                files on disk
    │   ├── ConfigError                config.json says something we cannot build
    │   ├── WeightsError               missing, unexpected, misshapen or non-finite tensors
    │   └── TokenizerError             tokenizer files, or a vocabulary that does not fit the model
    ├── UnknownNameError (LookupError) no such model, template, layout; the message lists what exists
    ├── HubError                       a download failed, or offline mode lacks files
    ├── DeviceError                    device or dtype not available on this machine
    ├── EngineError                    a request is not answered, for a reason that is not its own
    │   ├── QueueFullError             too much is waiting; later it may go
    │   └── EngineStoppedError         it has ended, or its loop has failed
    └── TrainingError                  a run cannot start or must stop
        └── RecipeError                its recipe says what cannot be; wrong use, so an InputError too

Messages carry the numbers and the remedy.
"""


class InternVLError(Exception):
    """Base of every error raised on purpose by this package."""


class InputError(InternVLError, ValueError):
    """What was handed over cannot be used."""


class ImageError(InputError):
    """A picture is missing, corrupt, of an unknown kind, or over a limit."""


class VideoError(InputError):
    """A video or frame folder is missing, corrupt, or over a limit."""


class DocumentError(InputError):
    """A PDF is missing, corrupt, or over a limit."""


class PromptError(InputError):
    """Messages, roles or image marks do not form a valid conversation."""


class ContextOverflowError(InputError):
    """Prompt and requested answer are longer than the model's context."""


class CapacityError(InputError):
    """A request needs more pages, tiles or bytes than the engine has in all."""


class RequestError(InputError):
    """A request that the server refuses: HTTP status, the field that is wrong, and a code for programs."""

    def __init__(
        self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code


class CheckpointError(InternVLError):
    """Files of a checkpoint cannot be read or written."""


class ConfigError(CheckpointError):
    """A configuration names something this package cannot build."""


class WeightsError(CheckpointError):
    """Tensors are missing, unexpected, of the wrong shape, or not finite."""


class TokenizerError(CheckpointError):
    """Tokenizer files cannot be read, or their vocabulary does not fit the model."""


class UnknownNameError(InternVLError, LookupError):
    """No model, template or layout of that name."""


class HubError(InternVLError):
    """A download failed, or files are not in the cache and the network may not be used."""


class DeviceError(InternVLError):
    """The device or dtype asked for is not available here."""


class EngineError(InternVLError):
    """A request is not answered for a reason that is not its own; it may be sent again."""


class QueueFullError(EngineError):
    """Too many requests, tokens or tiles are waiting."""


class DeadlineError(EngineError):
    """A request's time was over before anything of its answer was there."""


class EngineStoppedError(EngineError):
    """The engine was closed, or its loop has failed."""


class TrainingError(InternVLError):
    """A training run cannot start, or has to stop."""


class RecipeError(TrainingError, InputError):
    """A recipe says what cannot be, or what does not go together."""
