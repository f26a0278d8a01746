from mmsimvit.cli.gpu_check import main

if __name__ == '__main__':
    main()
